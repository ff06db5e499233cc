"""The tensor table: what is missing, misshapen or unknown is said with its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from formats.writers import random_model, tiny_config
from models.runner import views_of

from rllama.config import ModelConfig, sizes
from rllama.errors import ConfigError, UnsupportedError
from rllama.formats import names
from rllama.formats.checkpoint import Checkpoint, Extra
from rllama.models.llama import Llama
from rllama.models.table import check_tensors, expand, settled
from rllama.tensor import TensorView

CFG = tiny_config()
VIEWS = views_of(random_model(CFG, seed=1), "F32")
TABLE = settled(Llama.TENSORS, VIEWS)


def check(
    views: Mapping[str, TensorView], cfg: ModelConfig = CFG, extras: tuple[Extra, ...] = ()
) -> dict[str, TensorView]:
    checkpoint = Checkpoint("a file", "GGUF", cfg, views, extras=extras, names=names.GGUF)
    return check_tensors(Llama.TENSORS, cfg, checkpoint)


def zeros(name: str, *shape: int, kind: str = "F32") -> dict[str, TensorView]:
    return views_of({name: np.zeros(shape, np.float32)}, kind)


def test_table_shapes_are_products_of_letters() -> None:
    letters = {"H": 4, "d": 8, "D": 32}
    assert sizes("H*d, D", letters) == (32, 32)
    assert sizes("D", letters) == (32,)
    assert CFG.sizes("G*d, D") == (CFG.n_kv_heads * CFG.head_dim, CFG.dim)


@pytest.mark.parametrize("tied", [False, True])
def test_table_names_and_shapes_are_those_of_a_model(tied: bool) -> None:
    cfg = tiny_config(tied_head=tied, ffn_dim=48, n_kv_heads=1)
    table = {name: cfg.sizes(row.shape) for row, _, name in expand(TABLE, cfg)}
    assert {name: x.shape for name, x in random_model(cfg, 1).items()} == table


def test_table_expands_every_layer_once() -> None:
    found = [name for _, _, name in expand(TABLE, CFG)]
    assert len(found) == len(set(found)) == 9 * CFG.n_layers + 3
    assert {"embed", "layers.0.wq", f"layers.{CFG.n_layers - 1}.w_down", "lm_head"} <= set(found)


def test_check_gives_what_fits_in_the_order_of_the_table() -> None:
    backwards = dict(reversed(VIEWS.items()))
    assert list(check(backwards)) == [name for _, _, name in expand(TABLE, CFG)]


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("embed", "token_embd.weight"),
        ("layers.1.wk", "blk.1.attn_k.weight"),
        ("final_norm", "output_norm.weight"),
        ("lm_head", "output.weight"),
    ],
)
def test_check_missing_tensor_is_named_as_in_the_file(name: str, theirs: str) -> None:
    views = {key: view for key, view in VIEWS.items() if key != name}
    with pytest.raises(ConfigError, match=rf"a file: tensor '{theirs}' \({name}\) is missing"):
        check(views)


def test_check_tied_head_may_be_missing_or_stored_again() -> None:
    tied = replace(CFG, tied_head=True)
    views = {name: view for name, view in VIEWS.items() if name != "lm_head"}
    assert "lm_head" not in check(views, tied)
    assert "lm_head" not in check(VIEWS, tied)


def test_check_wrong_shape_names_tensor_want_and_got() -> None:
    want = r"test:layers\.1\.wk: .* has the shape \[8, 32\], not \[16, 32\] \(\[G\*d, D\]"
    with pytest.raises(ConfigError, match=want):
        check(VIEWS | zeros("layers.1.wk", 8, 32))


def test_check_vector_in_blocks_is_refused() -> None:
    blocks = views_of({"x": np.zeros((1, 32), np.float32)}, "Q8_0")["x"]
    vector = TensorView(blocks.data, blocks.dtype, (32,), "test:final_norm")
    with pytest.raises(UnsupportedError, match="final_norm is a vector of type Q8_0"):
        check(VIEWS | {"final_norm": vector})


def test_check_tensor_of_another_architecture_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"layers\.0\.q_norm is no part of the arch"):
        check(VIEWS | zeros("layers.0.q_norm", 8))


def test_check_optional_tensor_is_in_every_layer_or_in_none() -> None:
    bias = zeros("layers.0.bq", 32)
    with pytest.raises(ConfigError, match=r"attn_q\.bias.*\(layers\.1\.bq\) is missing"):
        check(VIEWS | bias)
    with pytest.raises(UnsupportedError, match=r"layers\.1\.bq is no part"):
        check(VIEWS | zeros("layers.1.bq", 32))
    assert "layers.1.bq" in check(VIEWS | bias | zeros("layers.1.bq", 32))


def test_check_takes_parts_or_the_matrix_that_has_them_all() -> None:
    names = [f"layers.{i}.{part}" for i in (0, 1) for part in ("wq", "wk", "wv")]
    fused = {name: view for name, view in VIEWS.items() if name not in names}
    for i in (0, 1):
        fused |= zeros(f"layers.{i}.wqkv", 64, 32)
    assert set(check(fused)) == set(fused)
    with pytest.raises(UnsupportedError, match=r"layers\.0\.wk is no part"):
        check(fused | zeros("layers.0.wk", 16, 32))
    with pytest.raises(ConfigError, match=r"shape \[60, 32\], not \[64, 32\] \(\[H\*d \+ G"):
        check(fused | zeros("layers.1.wqkv", 60, 32))


def test_check_layer_beyond_the_last_is_refused() -> None:
    with pytest.raises(ConfigError, match="belongs to layer 2, but the model has 2 layers"):
        check(VIEWS | zeros("layers.2.wq", 32, 32))


def test_check_extra_with_a_role_is_refused_and_others_are_ignored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(UnsupportedError, match=r"'blk\.0\.attn_q\.bias': biases are not supported"):
        check(VIEWS, extras=(Extra("blk.0.attn_q.bias", "F32", (32,), 128, "biases"),))
    with caplog.at_level("INFO", "rllama"):
        assert check(VIEWS, extras=(Extra("rope.freqs", "F32", (4,), 16),)).keys() == VIEWS.keys()
    assert "1 unknown tensors ignored: rope.freqs" in caplog.text
