"""Quantising at load: every recipe at every level gives the reference's bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from kernels.cases import FORMATS, THREADS, context, float_weight
from numpy.typing import NDArray

from rllama._kernels import core
from rllama.errors import ShapeError
from rllama.quant import dequantize, quantize, scaled
from rllama.recipe import RECIPE_TYPES, RecipeKind

ISA = core.isa_levels()[0][0]
Floats = NDArray[np.float32]
N_COLS = 512

REFERENCES: dict[RecipeKind, Callable[[Floats, int, str], NDArray[np.uint8]]] = {
    "q8_0": lambda x, group, scales: quantize("Q8_0", x),
    "q4_0": lambda x, group, scales: quantize("Q4_0", x),
    "q4_k": lambda x, group, scales: quantize("Q4_K", x),
    "symmetric_8": lambda x, group, scales: scaled.symmetric(x, 8, group, scales),
    "symmetric_4": lambda x, group, scales: scaled.symmetric(x, 4, group, scales),
    "asymmetric_4": lambda x, group, scales: scaled.asymmetric(x, group),
}


def samples() -> Floats:
    """Rows of all kinds: spread, ties, zeros, one sign, alike, tiny, large, a few large ones."""
    rng = np.random.default_rng(1)
    normal = rng.standard_normal((24, N_COLS)).astype(np.float32)
    ties = (rng.integers(-254, 255, (4, N_COLS)) / 2).astype(np.float32)
    ties[:, ::32] = 127.0
    mixed = normal[:8] * np.exp(rng.uniform(-12, 6, (8, N_COLS))).astype(np.float32)
    outliers = normal[8:12].copy()
    outliers[:, ::100] *= 50
    return np.concatenate([
        normal * np.float32(0.02), ties, mixed, outliers, np.zeros((2, N_COLS), np.float32),
        np.abs(normal[:2]), -np.abs(normal[:2]), np.full((1, N_COLS), 0.25, np.float32),
        np.full((1, N_COLS), -3.0, np.float32), normal[:2] * np.float32(1e-9),
        normal[:2] * np.float32(1e4), normal[:1] * np.float32(1e-40),
    ]).astype(np.float32)  # fmt: skip


X = samples()


def run(
    kind: RecipeKind, x: Floats, *, fmt: str = "F32", group: int = 128, scales: str = "F32",
    isa: str = ISA, n_threads: int = 1,
) -> NDArray[np.uint8] | None:  # fmt: skip
    out = np.full((len(x), RECIPE_TYPES[kind].row_bytes(x.shape[1])), 0xA5, dtype=np.uint8)
    number = list(RECIPE_TYPES).index(kind)
    weight = float_weight(fmt, x).weight
    ok = context(isa, n_threads).quantize(weight, number, group, FORMATS.index(scales), out)
    return out if ok else None


@pytest.mark.parametrize("kind", RECIPE_TYPES)
def test_quantize_gives_the_bytes_of_the_reference(isa: str, kind: RecipeKind) -> None:
    want = REFERENCES[kind](X, 128, "F32")
    for n_threads in THREADS:
        got = run(kind, X, isa=isa, n_threads=n_threads)
        assert got is not None
        wrong = np.flatnonzero((got != want).any(axis=1))
        assert wrong.size == 0, f"rows {wrong}"


@pytest.mark.parametrize("n_blocks", [1, 3])
def test_quantize_q4_k_of_an_odd_number_of_blocks(isa: str, n_blocks: int) -> None:
    """The search takes two at a time; the rest of the last pair changes nothing, in no row."""
    x = np.ascontiguousarray(np.concatenate([X, X[::-1]], axis=1)[:, : 256 * n_blocks])
    np.testing.assert_array_equal(run("q4_k", x, isa=isa), quantize("Q4_K", x))


@pytest.mark.parametrize("fmt", ["F16", "BF16"])
@pytest.mark.parametrize("kind", RECIPE_TYPES)
def test_quantize_reads_narrow_floats(isa: str, kind: RecipeKind, fmt: str) -> None:
    x = X[:24]
    exact = float_weight(fmt, x).values.astype(np.float32)
    got = run(kind, x, fmt=fmt, isa=isa)
    np.testing.assert_array_equal(got, REFERENCES[kind](exact, 128, "F32"))


@pytest.mark.parametrize("group", [32, 96, 256, 512, 1024])
@pytest.mark.parametrize("scales", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("kind", ["symmetric_8", "symmetric_4", "asymmetric_4"])
def test_quantize_groups_and_scale_types(kind: RecipeKind, scales: str, group: int) -> None:
    """96 leaves a shorter group at the end, 1024 is more than a row has."""
    got = run(kind, X, group=group, scales=scales)
    np.testing.assert_array_equal(got, REFERENCES[kind](X, group, scales))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", RECIPE_TYPES)
def test_quantize_refuses_what_is_not_finite(isa: str, kind: RecipeKind, bad: float) -> None:
    x = X[:5].copy()
    x[3, 100] = bad
    assert run(kind, x, isa=isa) is None


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_k", "symmetric_4", "asymmetric_4"])
def test_quantize_refuses_scales_beyond_half_precision(kind: RecipeKind) -> None:
    assert run(kind, np.full((2, N_COLS), 3e38, np.float32)) is None
    assert run(kind, X[:2] * np.float32(1e12)) is None


@pytest.mark.parametrize(("kind", "steps"), [("q4_k", 15), ("q4_0", 16), ("q8_0", 254)])
def test_quantize_errors_are_near_those_of_even_steps(kind: RecipeKind, steps: int) -> None:
    """Root mean square, against the range of the 32 values cut into so many steps."""
    x = X[:24]
    data = run(kind, x)
    assert data is not None
    back = dequantize(RECIPE_TYPES[kind].name, data, x.shape)
    blocks = x.reshape(-1, 32)
    step = 2 * np.abs(blocks).max(axis=1) if kind != "q4_k" else np.ptp(blocks, axis=1)
    even = np.sqrt(np.mean((step / steps) ** 2 / 12))
    assert np.sqrt(np.mean((back - x) ** 2)) < 1.1 * even


def weight(n_cols: int = 64, fmt: str = "F32") -> core.Weight:
    return float_weight(fmt, np.zeros((2, n_cols), np.float32)).weight


REFUSED: dict[str, Callable[[], object]] = {
    "kind": lambda: context(ISA).quantize(weight(), 6, 0, 0, np.zeros((2, 68), np.uint8)),
    "kind below": lambda: context(ISA).quantize(weight(), -1, 0, 0, np.zeros((2, 68), np.uint8)),
    "scales": lambda: context(ISA).quantize(weight(), 0, 0, 3, np.zeros((2, 68), np.uint8)),
    "bytes": lambda: context(ISA).quantize(weight(), 0, 0, 0, np.zeros((2, 67), np.uint8)),
    "rows": lambda: context(ISA).quantize(weight(), 0, 0, 0, np.zeros((3, 68), np.uint8)),
    "columns": lambda: context(ISA).quantize(weight(63), 0, 0, 0, np.zeros((2, 34), np.uint8)),
    "of 256": lambda: context(ISA).quantize(weight(64), 2, 0, 0, np.zeros((2, 36), np.uint8)),
    "group": lambda: context(ISA).quantize(weight(), 3, 48, 0, np.zeros((2, 72), np.uint8)),
    "no group": lambda: context(ISA).quantize(weight(), 3, 0, 0, np.zeros((2, 72), np.uint8)),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_quantize_refuses_arguments(call: Callable[[], object]) -> None:
    with pytest.raises(ShapeError, match="quantize: "):
        call()


def test_quantize_refuses_blocks_as_source() -> None:
    blocks = core.Weight(np.zeros(68, np.uint8), FORMATS.index("Q8_0"), 1, 64, "test")
    with pytest.raises(ShapeError, match="quantize: Q8_0"):
        context(ISA).quantize(blocks, 0, 0, 0, np.zeros((1, 68), np.uint8))
