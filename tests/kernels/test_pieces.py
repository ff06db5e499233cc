"""Weights in pieces: rows give the bits of the whole, columns add up, whatever is mixed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from kernels.cases import (
    FLOATS,
    FORMATS,
    Case,
    assert_same_bits,
    assert_within,
    context,
    expected,
    fit,
    matmul,
    random_weight,
    random_x,
    rows_alone,
    step_of,
)
from reference.ref_ops import F32

from rllama._kernels import core
from rllama.errors import ShapeError

TOKENS = [1, 4, 13, 40]


def row_pieces(case: Case, cuts: list[int]) -> core.Joined:
    """The rows of a weight, cut before each of these."""
    rows = case.raw.reshape(case.n_rows, -1)
    bounds = [0, *cuts, case.n_rows]
    parts = [rows[a:b].copy().reshape(-1) for a, b in itertools.pairwise(bounds)]
    number = FORMATS.index(case.fmt)
    n_cols = case.n_cols
    return core.Joined(
        tuple(core.Weight(p, number, p.size // rows.shape[1], n_cols, "piece") for p in parts), 0
    )


def column_pieces(case: Case, cuts: list[int]) -> core.Joined:
    """The columns of a weight, cut before each of these (whole blocks)."""
    rows = case.raw.reshape(case.n_rows, -1)
    width = rows.shape[1] / case.n_cols
    bounds = [0, *cuts, case.n_cols]
    parts = []
    for a, b in itertools.pairwise(bounds):
        raw = np.ascontiguousarray(rows[:, int(a * width) : int(b * width)]).reshape(-1)
        parts.append(core.Weight(raw, FORMATS.index(case.fmt), case.n_rows, b - a, "piece"))
    return core.Joined(tuple(parts), 1)


@pytest.mark.parametrize("fmt", FORMATS)
def test_pieces_of_rows_give_the_bits_of_the_whole(isa: str, fmt: str) -> None:
    case = random_weight(fmt, 40, fit(fmt, 96), seed=5)
    for n_tokens in TOKENS:
        x = random_x(n_tokens, case.n_cols, seed=6)
        (want,) = matmul(context(isa), x, case.weight)
        for cuts in ([20], [1, 2, 19], list(range(1, 40))):  # the last: 40 outputs, several ops
            (got,) = matmul(context(isa, 2), x, row_pieces(case, cuts))
            assert_same_bits(got, want, f"{isa} {fmt} T{n_tokens} {len(cuts) + 1} pieces")


@pytest.mark.parametrize("fmt", FORMATS)
def test_pieces_of_columns_match_the_reference_and_themselves(isa: str, fmt: str) -> None:
    unit = fit(fmt, 32)
    case = random_weight(fmt, 17, 5 * unit, seed=7)
    joined = column_pieces(case, [unit, 3 * unit])
    x = random_x(max(TOKENS), case.n_cols, seed=8)
    alone = rows_alone(context(isa), x, joined)
    want, bound = expected(isa, case, x)
    assert_within(alone, want, 2 * bound, f"{isa} {fmt}")
    for n_tokens in TOKENS:
        (got,) = matmul(context(isa, 2), np.ascontiguousarray(x[:n_tokens]), joined)
        assert_same_bits(got, alone[:n_tokens], f"{isa} {fmt} T{n_tokens}")


def test_pieces_of_columns_add_in_their_order(isa: str) -> None:
    case = random_weight("F32", 9, 64, seed=9)
    joined = column_pieces(case, [24, 32])
    x = random_x(5, 64, seed=10)
    ctx, into = context(isa), random_x(5, 9, seed=11).copy()
    want = into.copy()
    for part, a, b in zip(joined.parts, (0, 24, 32), (24, 32, 64), strict=True):
        want += matmul(ctx, np.ascontiguousarray(x[:, a:b]), part)[0]
    ctx.matmul_add(core.Buf(x), joined, core.Buf(into))
    assert_same_bits(into, want, isa)


def test_pieces_mix_with_whole_weights_in_one_op(isa: str) -> None:
    whole, rows = random_weight("F16", 8, 64, seed=1), random_weight("F16", 35, 64, seed=2)
    columns = random_weight("Q8_0", 5, 64, seed=3)
    x = random_x(3, 64, seed=4)
    ctx = context(isa)
    weights = (row_pieces(rows, list(range(1, 35))), column_pieces(columns, [32]), whole.weight)
    got = matmul(ctx, x, *weights)
    for out, weight in zip(got, weights, strict=True):
        assert_same_bits(out, matmul(ctx, x, weight)[0], isa)
    assert_same_bits(got[0], matmul(ctx, x, rows.weight)[0], isa)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("fmt", FORMATS)
def test_pieces_of_an_embedding_give_its_rows(isa: str, fmt: str, axis: int) -> None:
    case = random_weight(fmt, 12, 3 * fit(fmt, 32), seed=12)
    joined = row_pieces(case, [1, 7]) if axis == 0 else column_pieces(case, [fit(fmt, 32)])
    ids = [0, 11, 6, 7, 1, 1, 0, 5]
    out = np.full((len(ids), case.n_cols), np.nan, np.float32)
    context(isa).embed(step_of(list(range(len(ids))), token_ids=ids), joined, core.Buf(out))
    want: F32 = case.values[ids].astype(np.float32)
    assert_same_bits(out, want, f"{isa} {fmt}")


def test_pieces_tell_shape_size_and_format() -> None:
    case = random_weight("BF16", 6, 32, seed=1)
    rows, columns = row_pieces(case, [2]), column_pieces(case, [8])
    assert rows.shape == columns.shape == (6, 32)
    assert rows.n_bytes == columns.n_bytes == case.raw.size
    assert rows.format_name == columns.format_name == "BF16"


@pytest.mark.parametrize("fmt", FLOATS[:1])
def test_pieces_that_do_not_fit_are_refused(fmt: str) -> None:
    a, b = random_weight(fmt, 4, 32, seed=1).weight, random_weight(fmt, 5, 16, seed=1).weight
    half = random_weight("F16", 4, 32, seed=1).weight
    for parts, axis in (((a, b), 0), ((a, b), 1), ((a, half), 0), ((), 0), ((a,), 2)):
        with pytest.raises(ShapeError, match="pieces"):
            core.Joined(parts, axis, "m")


def test_pieces_of_other_widths_than_the_buffers_are_refused(isa: str) -> None:
    joined = row_pieces(random_weight("F32", 4, 32, seed=1), [2])
    x, out = core.Buf.zeros(2, 32), core.Buf.zeros(2, 4)
    ctx = context(isa)
    for wrong_x, wrong_out in ((core.Buf.zeros(2, 31), out), (x, core.Buf.zeros(2, 5))):
        with pytest.raises(ShapeError, match="matmul: x"):
            ctx.matmul(wrong_x, (joined,), (wrong_out,))
    with pytest.raises(ShapeError, match="token id 4 of 4 rows"):
        ctx.embed(step_of([0], token_ids=[4]), joined, core.Buf.zeros(1, 32))
