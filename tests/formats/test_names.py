"""Rename tables are one to one and know every tensor of the architectures."""

from __future__ import annotations

import pytest
from writers import hf_name, tiny_config

from rllama.formats import names
from rllama.models import ALIASES, find
from rllama.models.table import expand

TABLES = {
    "gguf": names.GGUF, "hf": names.HF, "hf_post": names.HF_POST_NORMED,
    "hf_glm4": names.HF_GLM4, "llama2c": names.LLAMA2C,
}  # fmt: skip
OURS = {row.name for arch in ALIASES for row in find(arch).TENSORS}
POST_NORMS = {"layers.{i}.post_attn_norm", "layers.{i}.post_ffn_norm"}
PLAIN = {row.name for row in find("llama").TENSORS if not row.optional and not row.parts}
# Gate and up in one are `ffn_up` in a GGUF, which only their height tells.
KNOWN = {
    "gguf": OURS - {"layers.{i}.w_gate_up"}, "hf": OURS - POST_NORMS, "hf_post": OURS,
    "hf_glm4": OURS, "llama2c": PLAIN,
}  # fmt: skip
# Files name routers and experts in several ways, and have no biases but those of stacks.
EXPERTS = {name for name in OURS if "expert" in name or name.endswith("router")}
ONE_BY_ONE = {name for name in EXPERTS if ".b_" not in name}


@pytest.mark.parametrize("family", TABLES)
def test_names_cover_every_tensor_once(family: str) -> None:
    ours = [name for name in TABLES[family].values() if "expert" not in name]
    ours = [name for name in ours if not name.endswith("router")]
    assert set(ours) == KNOWN[family] - EXPERTS
    assert len(ours) == len(set(ours))


@pytest.mark.parametrize("family", TABLES)
@pytest.mark.parametrize("layer", [0, 7, 31, 4095])
def test_names_go_there_and_back(family: str, layer: int) -> None:
    table = TABLES[family]
    for pattern in KNOWN[family] - (EXPERTS - ONE_BY_ONE):
        ours = pattern.replace("{i}", str(layer)).replace("{e}", str(127 - layer % 64))
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


@pytest.mark.parametrize(
    ("name", "role"),
    [("blk.0.attn_qkv.bias", "biases"), ("blk.0.inner_norm.weight", "norms at this place"),
     ("vision_tower.norm.bias", ""), ("blk.0.ffn_gate_shexp.weight", "shared experts"),
     ("blk.0.ffn_latent_exps.weight", "experts"),
     ("blk.0.what.weight", "weights that nothing here knows"), ("mtp_linear.0.weight", ""),
     ("model.layers.0.self_attn.rotary_emb.inv_freq", "")],
)  # fmt: skip
def test_names_without_a_row_tell_their_role(name: str, role: str) -> None:
    assert names.canonical(names.GGUF, name) is None
    assert names.role(name) == role


def test_writer_and_reader_agree_on_names() -> None:
    cfg = tiny_config()
    table = tuple(row for row in find(cfg.arch).TENSORS if row.name in PLAIN)
    for _, _, name in expand(table, cfg):
        assert names.in_file(names.HF, name) == hf_name(name)


@pytest.mark.parametrize("family", ["gguf", "hf", "hf_post"])
def test_names_of_experts_end_in_tensors_of_the_architectures(family: str) -> None:
    stacks = {name.replace("{e}.", "") for name in EXPERTS}
    both = {"layers.{i}.experts.w_gate_up", "layers.{i}.experts.b_gate_up"}
    for ours in TABLES[family].values():
        if "expert" in ours and "{e}" not in ours:
            assert ours.removesuffix("_blocks").removesuffix("_scales") in stacks | both
