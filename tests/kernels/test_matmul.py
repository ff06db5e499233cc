"""Matmul: every format, level and boundary size against float64, and invariant to the batch."""

from __future__ import annotations

import numpy as np
import pytest
from kernels.cases import (
    BLOCKS,
    FEW,
    FLOATS,
    FORMATS,
    LEVELS,
    THREADS,
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
)
from reference import ref_ops

from rllama._kernels import core

# Around tiles of 4, 8, 12 and 16 tokens, and around the step from fused kernels to panels.
TOKENS = [2, 6, 12, 13, 16, 37] if FEW else [*range(1, 9), 10, 12, 13, 14, 16, 17, 25, 33, 37, 64]
# Around 4, 8 and 16 rows side by side.
ROWS = [1, 7, 16, 17] if FEW else [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 48]
BLOCK_COLS = [32, 96] if FEW else [32, 64, 96, 256, 352]
FLOAT_COLS = [1, 8, 31] if FEW else [1, 7, 8, 9, 31, 32, 64, 172]
# Formats without kernels differ in how a row becomes F32, which takes no notice of its neighbours:
# one of them goes through all sizes.
WITHOUT_KERNELS = [fmt for fmt in FORMATS if not context(LEVELS[-1]).has_kernels(fmt)]
SWEPT = [fmt for fmt in FORMATS if fmt not in WITHOUT_KERNELS or fmt in WITHOUT_KERNELS[:1]]


def cols_of(fmt: str) -> list[int]:
    if fmt in FLOATS:
        return FLOAT_COLS
    return sorted({fit(fmt, n_cols) for n_cols in BLOCK_COLS})


def check_sizes(isa: str, case: Case, tokens: list[int], what: str) -> None:
    """Rows alone against the reference; then rows in batches of every size against rows alone."""
    ctx, weight = context(isa), case.weight
    x = random_x(max(tokens), case.n_cols, seed=1)
    alone = rows_alone(ctx, x, weight)
    assert_within(alone, *expected(isa, case, x), f"{what} T1")
    for n_tokens in tokens:
        (got,) = matmul(ctx, np.ascontiguousarray(x[:n_tokens]), weight)
        assert_same_bits(got, alone[:n_tokens], f"{what} T{n_tokens}")


@pytest.mark.parametrize(
    ("fmt", "n_rows"),
    [(fmt, n) for fmt in FORMATS for n in (ROWS if fmt in SWEPT else [1, 5, 33])],
)
def test_matmul_matches_reference(isa: str, fmt: str, n_rows: int) -> None:
    for n_cols in cols_of(fmt):
        case = random_weight(fmt, n_rows, n_cols, seed=2)
        check_sizes(isa, case, TOKENS, f"{isa} {fmt} N{n_rows} K{n_cols}")


@pytest.mark.slow
@pytest.mark.parametrize("n_cols", [1024, 4096, 5632], ids=lambda k: f"K{k}")
@pytest.mark.parametrize("n_rows", [32, 255, 1000], ids=lambda n: f"N{n}")
@pytest.mark.parametrize("fmt", SWEPT)
def test_matmul_matches_reference_large(isa: str, fmt: str, n_rows: int, n_cols: int) -> None:
    case = random_weight(fmt, n_rows, n_cols, seed=3)
    check_sizes(isa, case, [1, 4, 13, 37, 48, 100], f"{isa} {fmt} N{n_rows} K{n_cols}")


@pytest.mark.slow
@pytest.mark.parametrize("fmt", SWEPT)
def test_matmul_matches_reference_every_small_size(isa: str, fmt: str) -> None:
    for n_cols in range(1, 40):
        for n_rows in range(1, 36):
            k = n_cols if fmt in FLOATS else fit(fmt, 32 * n_cols)
            case = random_weight(fmt, n_rows, k, seed=4)
            check_sizes(isa, case, [1, 9, 40], f"{isa} {fmt} N{n_rows} K{k}")


@pytest.mark.parametrize("n_tokens", [1, 5, 37, 64], ids=lambda n: f"T{n}")
@pytest.mark.parametrize("fmt", SWEPT)
def test_matmul_threads_are_bit_equal(isa: str, fmt: str, n_tokens: int) -> None:
    """515 x 512 is several chunks of work in every format, the last of them short."""
    weight = random_weight(fmt, 515, 512, seed=5).weight
    x = random_x(n_tokens, 512, seed=6)
    alone = rows_alone(context(isa), x, weight)
    for n_threads in THREADS:
        (got,) = matmul(context(isa, n_threads), x, weight)
        assert_same_bits(got, alone, f"{n_threads} threads")


@pytest.mark.parametrize("fmt", FORMATS)
def test_matmul_matches_reference_in_several_chunks(isa: str, fmt: str) -> None:
    case = random_weight(fmt, 515, 512, seed=5)
    x = random_x(5, 512, seed=6)
    assert_within(matmul(context(isa), x, case.weight)[0], *expected(isa, case, x), fmt)


@pytest.mark.parametrize("n_threads", THREADS)
@pytest.mark.parametrize("n_tokens", [1, 9, 40], ids=lambda n: f"T{n}")
@pytest.mark.parametrize(
    "formats",
    [
        ("Q4_0", "Q4_0", "Q8_0"),
        ("Q8_0", "Q8_F32", "Q4_0", "Q8_0"),
        ("F32", "BF16", "F16"),
        ("BF16", "Q8_0", "F32", "Q4_0"),
        ("Q4_K", "Q6_K", "F32", "Q8_0"),
        ("IQ2_XS", "Q5_1", "Q4_0", "TQ1_0"),
    ],
    ids=" ".join,
)
def test_matmul_shared_x_equals_one_by_one(
    isa: str, formats: tuple[str, ...], n_tokens: int, n_threads: int
) -> None:
    rows = [130, 17, 3, 64]
    n_cols = max(fit(fmt, 288) for fmt in formats)
    cases = [random_weight(fmt, rows[i], n_cols, seed=i) for i, fmt in enumerate(formats)]
    x = random_x(n_tokens, n_cols, seed=7)
    together = matmul(context(isa, n_threads), x, *(case.weight for case in cases))
    for case, out in zip(cases, together, strict=True):
        alone = matmul(context(isa), x, case.weight)[0]
        assert_same_bits(out, alone, f"{case.fmt} N{case.n_rows}")
        assert_within(out, *expected(isa, case, x), case.fmt)


@pytest.mark.parametrize("n_rows", [1, 5, 16, 33, 200], ids=lambda n: f"N{n}")
@pytest.mark.parametrize("fmt", SWEPT)
def test_matmul_add_adds_once(isa: str, fmt: str, n_rows: int) -> None:
    """Adding is one f32 addition of what matmul gives."""
    case = random_weight(fmt, n_rows, fit(fmt, 96), seed=8)
    for n_tokens in (1, 4, 13, 40):
        x = random_x(n_tokens, case.n_cols, seed=9)
        into = random_x(n_tokens, n_rows, seed=10)
        want = into + matmul(context(isa), x, case.weight)[0]
        for n_threads in THREADS:
            got = into.copy()
            context(isa, n_threads).matmul_add(core.Buf(x), case.weight, core.Buf(got))
            assert_same_bits(got, want, f"T{n_tokens}, {n_threads} threads")


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt != "BF16"])
def test_matmul_levels_agree_to_the_bit(fmt: str) -> None:
    """One token, a few, a tile cut into pieces of 256 columns, panels."""
    case = random_weight(fmt, 37, fit(fmt, 800), seed=14)
    for n_tokens in (1, 3, 7, 40):
        x = random_x(n_tokens, case.n_cols, seed=15)
        want = matmul(context(LEVELS[0]), x, case.weight)[0]
        for level in LEVELS[1:]:
            got = matmul(context(level), x, case.weight)[0]
            assert_same_bits(got, want, f"{fmt} {level} T{n_tokens}")


@pytest.mark.parametrize("fmt", BLOCKS)
def test_matmul_quantised_stays_within_half_a_step(isa: str, fmt: str) -> None:
    """Against unrounded activations: half an 8-bit step of every value, and the f32 sums."""
    case = random_weight(fmt, 48, 352, seed=11)
    x = random_x(13, 352, seed=12)
    want, norm = ref_ops.matmul(x, case.values)
    step = ref_ops.quantisation_error(x, case.values)
    (got,) = matmul(context(isa), x, case.weight)
    assert_within(got, want, 1.001 * step + 20 * ref_ops.U * norm, "half a step")
    assert np.abs(got - want).max() > 0.01 * step.max()  # else this bound says nothing


@pytest.mark.parametrize("fmt", BLOCKS)
def test_matmul_whole_numbers_are_equal_across_levels(isa: str, fmt: str) -> None:
    """One block, scales of 1: the sum is a whole number, exact at every level and extreme."""
    rng = np.random.default_rng(13)
    most = np.full(32, 0xFF if fmt == "Q4_0" else 0x80, dtype=np.uint8)  # 15 - 8, or -128
    least = np.full(32, 0x00 if fmt == "Q4_0" else 0x7F, dtype=np.uint8)  # 0 - 8, or 127
    width = 16 if fmt == "Q4_0" else 32
    whole = rng.integers(0, 256, (40, width), dtype=np.uint8)
    whole[0], whole[1] = most[:width], least[:width]
    raw = np.concatenate(
        [np.tile(np.float32([1]) if fmt == "Q8_F32" else np.float16([1]), (40, 1)).view(np.uint8),
         whole], axis=1,
    ).reshape(-1)  # fmt: skip
    case = Case(fmt, np.ascontiguousarray(raw), 40, 32)
    x = rng.integers(-127, 128, (40, 32)).astype(np.float32)
    x[:, 0] = 127.0  # so that the activations' scale is 1
    x[0], x[1] = 127.0, -127.0
    x[1, 0] = -127.0
    got = matmul(context(isa), x, case.weight)[0]
    np.testing.assert_array_equal(got, x @ case.values.T)
