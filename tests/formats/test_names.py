"""Rename tables are one to one and complete; shapes follow the config."""

from __future__ import annotations

import pytest
from writers import hf_name, random_model, tiny_config

from rllama.formats import names
from rllama.formats.shapes import LAYER_SHAPES, TOP_SHAPES, expected_shapes

TABLES = {"gguf": names.GGUF, "hf": names.HF, "llama2c": names.LLAMA2C}
OURS = {*TOP_SHAPES, *(f"layers.{{i}}.{name}" for name in LAYER_SHAPES)}


@pytest.mark.parametrize("family", TABLES)
def test_names_cover_every_tensor_once(family: str) -> None:
    table = TABLES[family]
    assert set(table.values()) == OURS
    assert len(table) == len(OURS)


@pytest.mark.parametrize("family", TABLES)
@pytest.mark.parametrize("layer", [0, 7, 31, 4095])
def test_names_go_there_and_back(family: str, layer: int) -> None:
    table = TABLES[family]
    for pattern in OURS:
        ours = pattern.replace("{i}", str(layer))
        assert names.canonical(table, names.in_file(table, ours)) == ours


@pytest.mark.parametrize(
    "name",
    ["blk.00.attn_q.weight", "blk.-1.attn_q.weight", "blk.{i}.attn_q.weight", "blk.1.attn_q",
     "blk.1.2.attn_q.weight", "blk.٣.attn_q.weight", "", "."],
)  # fmt: skip
def test_names_that_only_look_right_are_unknown(name: str) -> None:
    assert names.canonical(names.GGUF, name) is None


def test_names_tell_the_layer() -> None:
    assert names.layer_index("layers.12.wq") == 12
    assert names.layer_index("embed") is None


@pytest.mark.parametrize("tied", [False, True])
def test_shapes_are_those_of_a_model(tied: bool) -> None:
    cfg = tiny_config(tied_head=tied, ffn_dim=48, n_kv_heads=1)
    model = random_model(cfg, 1)
    assert {name: x.shape for name, x in model.items()} == expected_shapes(cfg)


def test_writer_and_reader_agree_on_names() -> None:
    for name in expected_shapes(tiny_config()):
        assert names.in_file(names.HF, name) == hf_name(name)
