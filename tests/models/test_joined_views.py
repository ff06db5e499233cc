"""A model whose matrices lie in pieces computes what the whole one does."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from formats.writers import random_model, tiny_config
from models.runner import make, tokens, views_of

from rllama.errors import ShapeError
from rllama.models.base import f16_copy_bytes, natural_kv_dtype
from rllama.tensor import JoinedView, TensorView, View

CFG = tiny_config(dim=64, ffn_dim=128, head_dim=16, vocab_size=96)
MODEL = random_model(CFG, seed=21)


def pieces(
    views: Mapping[str, TensorView], n: int, columns: tuple[str, ...] = ()
) -> dict[str, View]:
    """Every matrix cut into n pieces: of rows, or of columns where the name ends so."""
    return {
        name: view if len(view.shape) == 1 else cut(view, n, int(name.endswith(columns)))
        for name, view in views.items()
    }


def cut(view: TensorView, n: int, axis: int) -> JoinedView:
    rows = np.frombuffer(view.data, np.uint8).reshape(view.shape[0], -1)
    parts = []
    for raw in np.split(rows, n, axis=axis):
        shape = (raw.shape[0], view.shape[1] * raw.shape[1] // rows.shape[1])
        parts.append(TensorView(memoryview(raw.tobytes()), view.dtype, shape, view.origin))
    return JoinedView(tuple(parts), axis)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("f16", [False, True])
def test_model_of_row_pieces_gives_the_bits_of_the_whole(kind: str, f16: bool) -> None:
    views = views_of(MODEL, kind)
    prompt = tokens(CFG, 20)
    want = make(CFG, views, f16=f16).run([(prompt, 0, [0])])
    got = make(CFG, pieces(views, 2), f16=f16).run([(prompt, 0, [0])])
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_model_of_column_pieces_is_close_and_invariant_to_the_batch(kind: str) -> None:
    views = views_of(MODEL, kind)
    joined = pieces(views, 4, columns=("embed", "wo", "w_down"))
    prompt = tokens(CFG, 20)
    want = make(CFG, views).run([(prompt, 0, [0])])
    got = make(CFG, joined).run([(prompt, 0, [0])])
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
    one_by_one = make(CFG, joined)
    for i, token in enumerate(prompt):
        np.testing.assert_array_equal(one_by_one.run([([token], i, [0])])[0], got[i])


def test_pieces_count_as_the_matrix_they_are() -> None:
    view = views_of(MODEL, "F32")["layers.0.wq"]
    joined = cut(view, 4, 1)
    assert (joined.shape, joined.n_bytes, joined.dtype) == (view.shape, view.n_bytes, view.dtype)
    assert f16_copy_bytes(joined) == view.n_bytes // 2
    assert natural_kv_dtype({"a": joined}) == "f32"
    np.testing.assert_array_equal(joined.to_f32(), view.to_f32())
    assert "3 more pieces of columns" in joined.origin


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_of_pieces_are_the_rows_of_the_whole(axis: int) -> None:
    view = views_of(MODEL, "F32")["layers.0.wq"]
    for first, last in ((0, 64), (3, 40), (16, 32), (17, 18)):
        got = cut(view, 4, axis).rows(first, last)
        assert got.shape == (last - first, 64)
        np.testing.assert_array_equal(got.to_f32(), view.to_f32()[first:last])


def test_pieces_that_do_not_fit_are_refused() -> None:
    f32, f16 = views_of(MODEL, "F32"), views_of(MODEL, "F16")
    pairs = [
        (f32["layers.0.wq"], f32["layers.0.w_down"]),
        (f32["layers.0.wq"], f16["layers.0.wq"]),
        (f32["layers.0.wq"], f32["final_norm"]),
    ]
    for pair in pairs:
        with pytest.raises(ShapeError, match="cannot be joined"):
            JoinedView(pair, 0)
