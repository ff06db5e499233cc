"""The tensor table: what is missing, misshapen or unknown is said with its name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from formats.writers import random_model, tiny_config
from models.runner import views_of

from rllama.errors import FormatError, UnsupportedError
from rllama.models import ALIASES, find
from rllama.models.base import (
    T,
    check_tensors,
    expand,
    f16_copy_bytes,
    inv_freq,
    natural_kv_dtype,
    shape_of,
)
from rllama.models.llama import Llama

CFG = tiny_config()
VIEWS = views_of(random_model(CFG, seed=1), "F32")


def test_find_knows_every_alias() -> None:
    assert all(find(name) for name in ALIASES)
    assert find("llama") is Llama


@pytest.mark.parametrize(("arch", "near"), [("lama", "llama"), ("llama4", "llama")])
def test_find_unknown_arch_names_itself_and_the_nearest(arch: str, near: str) -> None:
    with pytest.raises(UnsupportedError, match=f"'{arch}'.*nearest known one is '{near}'"):
        find(arch)


def test_find_arch_like_no_other_lists_the_known() -> None:
    with pytest.raises(UnsupportedError, match=r"'xyzzy'.*known: .*llama"):
        find("xyzzy")


def test_table_shapes_are_products_of_letters() -> None:
    assert shape_of(T("x", "H*d, D"), CFG) == (CFG.n_heads * CFG.head_dim, CFG.dim)
    assert shape_of(T("x", "D"), CFG) == (CFG.dim,)


def test_table_expands_every_layer_once() -> None:
    names = [name for _, _, name in expand(Llama.TENSORS, CFG)]
    assert len(names) == len(set(names)) == 9 * CFG.n_layers + 3
    assert {"embed", "layers.0.wq", f"layers.{CFG.n_layers - 1}.w_down", "lm_head"} <= set(names)


def test_check_accepts_what_fits() -> None:
    check_tensors(Llama.TENSORS, CFG, VIEWS)


@pytest.mark.parametrize("name", ["embed", "layers.1.wk", "final_norm", "lm_head"])
def test_check_missing_tensor_is_named(name: str) -> None:
    views = {k: v for k, v in VIEWS.items() if k != name}
    with pytest.raises(FormatError, match=f"test: tensor {name} is missing"):
        check_tensors(Llama.TENSORS, CFG, views)


def test_check_tied_head_may_be_missing() -> None:
    views = {k: v for k, v in VIEWS.items() if k != "lm_head"}
    check_tensors(Llama.TENSORS, replace(CFG, tied_head=True), views)


def test_check_wrong_shape_names_tensor_want_and_got() -> None:
    wrong = views_of({"layers.1.wk": np.zeros((8, 32), np.float32)}, "F32")
    with pytest.raises(FormatError, match=r"layers\.1\.wk has shape \[8, 32\].*\[16, 32\]"):
        check_tensors(Llama.TENSORS, CFG, VIEWS | wrong)


def test_check_unknown_tensor_is_refused() -> None:
    more = views_of({"layers.0.bq": np.zeros(32, np.float32)}, "F32")
    with pytest.raises(UnsupportedError, match=r"layers\.0\.bq is not part of architecture"):
        check_tensors(Llama.TENSORS, CFG, VIEWS | more)


def test_inv_freq_first_pair_turns_a_radian_per_position() -> None:
    freq = inv_freq(CFG)
    assert freq.shape == (CFG.head_dim // 2,)
    assert freq[0] == 1.0
    np.testing.assert_allclose(freq[-1], CFG.rope_theta ** (-(CFG.head_dim - 2) / CFG.head_dim))


@pytest.mark.parametrize(
    ("kind", "f16", "want"),
    [("F32", False, "f32"), ("F32", True, "f16"), ("F16", False, "f16"), ("Q8_0", False, "f16")],
)
def test_kv_dtype_follows_the_weights(kind: str, f16: bool, want: str) -> None:
    assert natural_kv_dtype(views_of(random_model(CFG, seed=1), kind), f16=f16) == want


def test_f16_copies_only_wide_float_matrices() -> None:
    halves = views_of({"embed": np.ones((4, 32), np.float32)}, "F16")
    assert f16_copy_bytes(VIEWS["embed"]) == VIEWS["embed"].n_bytes // 2
    assert f16_copy_bytes(VIEWS["final_norm"]) == 0
    assert f16_copy_bytes(halves["embed"]) == 0
