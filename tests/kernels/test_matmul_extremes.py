"""Matmul on values at the edge of what the formats and f32 can hold."""

from __future__ import annotations

import numpy as np
import pytest
from kernels.cases import (
    BLOCK_BYTES,
    BLOCKS,
    FLOATS,
    FORMATS,
    Case,
    assert_same_bits,
    assert_within,
    block_weight,
    context,
    expected,
    fit,
    float_weight,
    matmul,
    random_bytes,
    random_weight,
    random_x,
    scaled_weight,
)

from rllama.quant.noise import set_scales

N, K = 21, 96
TOKENS = [1, 6, 40]  # one row, fused tiles, panels
NOT_FINITE = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


def scaled_blocks(fmt: str, scales: list[float]) -> Case:
    """Random whole numbers under these scales, in turn."""
    rng = np.random.default_rng(1)
    n_blocks = N * K // 32
    return block_weight(
        fmt, np.resize(np.array(scales), n_blocks), random_bytes(rng, fmt, n_blocks), N, K
    )


@pytest.mark.parametrize("fmt", FORMATS)
def test_matmul_zero_weights_give_zero(isa: str, fmt: str) -> None:
    n_cols = fit(fmt, K)
    if fmt in FLOATS:
        case = float_weight(fmt, np.zeros((N, K), dtype=np.float32))
    elif fmt == "MXFP4":  # it has no scale of zero
        case = Case(fmt, np.zeros(N * n_cols // 32 * 17, dtype=np.uint8), N, n_cols)
    else:
        case = scaled_weight(fmt, 0.0, N, n_cols)
    for n_tokens in TOKENS:
        assert not matmul(context(isa), random_x(n_tokens, n_cols, seed=2), case.weight)[0].any()


@pytest.mark.parametrize("fmt", FORMATS)
def test_matmul_zero_activations_give_zero(isa: str, fmt: str) -> None:
    """Rows that are all zero, and rows that are zero in one block only."""
    case = random_weight(fmt, N, fit(fmt, K), seed=3)
    for n_tokens in TOKENS:
        x = random_x(n_tokens, case.n_cols, seed=4).copy()
        x[::2] = 0.0
        x[1::2, 32:64] = 0.0
        (got,) = matmul(context(isa), x, case.weight)
        assert not got[::2].any()
        assert_within(got, *expected(isa, case, x), f"T{n_tokens}")


@pytest.mark.parametrize("fmt", BLOCKS)
@pytest.mark.parametrize(
    "scales",
    [[65504.0, -65504.0], [6e-8, -6e-8], [6e-5, 0.0, 65504.0, 1.0]],
    ids=["huge", "subnormal", "mixed"],
)
def test_matmul_scales_at_the_edge_of_f16(isa: str, fmt: str, scales: list[float]) -> None:
    case = scaled_blocks(fmt, scales)
    x = random_x(40, K, seed=5)
    assert_within(matmul(context(isa), x, case.weight)[0], *expected(isa, case, x), fmt)


@pytest.mark.parametrize("scale", [1e30, 1e-38, 1e-42], ids=str)
def test_matmul_scales_at_the_edge_of_f32(isa: str, scale: float) -> None:
    case = scaled_blocks("Q8_F32", [scale, -scale])
    x = random_x(40, K, seed=6)
    assert_within(matmul(context(isa), x, case.weight)[0], *expected(isa, case, x), str(scale))


@pytest.mark.parametrize("size", [1e-45, 1e-40, 4e-37, 5e-37, 1e-30, 1e30], ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
def test_matmul_activations_at_the_edge_of_f32(isa: str, fmt: str, size: float) -> None:
    case = random_weight(fmt, N, fit(fmt, K), seed=7)
    x = (random_x(40, case.n_cols, seed=8).astype(np.float64) * size).astype(np.float32)
    assert_within(matmul(context(isa), x, case.weight)[0], *expected(isa, case, x), fmt)


@pytest.mark.parametrize("fmt", BLOCKS)
def test_matmul_one_large_activation_in_a_block(isa: str, fmt: str) -> None:
    """The large one sets the step; the block's others round to whole steps."""
    case = random_weight(fmt, N, K, seed=9)
    x = random_x(13, K, seed=10).copy()
    x[:, 5] = 1e4
    assert_within(matmul(context(isa), x, case.weight)[0], *expected(isa, case, x), fmt)


@pytest.mark.parametrize("fmt", BLOCKS)
@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF])
def test_matmul_largest_whole_numbers_add_up_exactly(isa: str, fmt: str, byte: int) -> None:
    """Every product has one sign and is as large as can be: sums in too few bits would show."""
    value = (byte ^ 0x80) - 0x80 if fmt != "Q4_0" else (byte & 0xF) - 8
    n_blocks = N * K // 32
    whole = np.full((n_blocks, BLOCK_BYTES[fmt] - (4 if fmt == "Q8_F32" else 2)), byte, np.uint8)
    if fmt == "Q4_0":
        whole[:] = (byte & 0xF) * 0x11
    case = block_weight(fmt, np.ones(n_blocks), whole, N, K)
    for n_tokens in TOKENS:
        for sign in (1.0, -1.0):
            x = np.full((n_tokens, K), 127.0 * sign, dtype=np.float32)
            assert (matmul(context(isa), x, case.weight)[0] == value * 127.0 * sign * K).all()


@pytest.mark.parametrize("fmt", FLOATS)
def test_matmul_overflow_is_infinite(isa: str, fmt: str) -> None:
    sign = np.array([[1.0], [-1.0]], dtype=np.float32)
    case = float_weight(fmt, np.full((2, 8), 60000.0, dtype=np.float32) * sign)
    x = np.full((1, 8), 3e38, dtype=np.float32)
    assert matmul(context(isa), x, case.weight)[0].tolist() == [[np.inf, -np.inf]]


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt != "MXFP4"])  # it knows only finite
def test_matmul_weight_that_is_not_finite_shows_in_its_row_alone(
    isa: str, fmt: str, value: str
) -> None:
    n_cols = fit(fmt, K)
    clean = random_weight(fmt, N, n_cols, seed=11)
    raw = clean.raw.copy()
    first = 7 * len(raw) // N  # the first value, or the first block, of row 7
    bad = np.array([NOT_FINITE[value]], dtype=np.float32)
    if fmt in FLOATS:
        piece = float_weight(fmt, bad[None]).raw
    else:
        piece = raw[first : first + BLOCK_BYTES[fmt]].copy()
        with np.errstate(invalid="ignore"):
            set_scales(fmt, piece[None], bad.astype(np.float64))
    raw[first : first + len(piece)] = piece
    others = np.arange(N) != 7
    for n_tokens in TOKENS:
        x = random_x(n_tokens, n_cols, seed=12)
        (got,) = matmul(context(isa), x, Case(fmt, raw, N, n_cols).weight)
        (want,) = matmul(context(isa), x, clean.weight)
        assert not np.isfinite(got[:, 7]).any()
        assert_same_bits(got[:, others], want[:, others], f"T{n_tokens}")


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("fmt", FORMATS)
def test_matmul_activation_that_is_not_finite_shows_in_its_token_alone(
    isa: str, fmt: str, value: str
) -> None:
    case = random_weight(fmt, N, fit(fmt, K), seed=13)
    for n_tokens in TOKENS:
        x = random_x(n_tokens, case.n_cols, seed=14).copy()
        (want,) = matmul(context(isa), x, case.weight)
        token = n_tokens // 2
        x[token, 40] = NOT_FINITE[value]
        (got,) = matmul(context(isa), x, case.weight)
        others = np.arange(n_tokens) != token
        assert not np.isfinite(got[token]).any()
        assert_same_bits(got[others], want[others], f"T{n_tokens}")
