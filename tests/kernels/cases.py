"""Random operands for the kernel tests, calls of the ops on plain arrays, and the error bounds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from reference import ref_ops
from reference.ref_ops import F32, F64, Bytes, U

from rllama._kernels import core
from rllama.batch import Batch
from rllama.quant.noise import random_blocks, set_scales

FORMATS = [name for name, _, _ in core.formats()]
BLOCK_LEN = {name: length for name, length, _ in core.formats()}
BLOCK_BYTES = {name: n_bytes for name, _, n_bytes in core.formats()}
FLOATS = ["F32", "F16", "BF16"]
BLOCKS = ["Q8_0", "Q4_0", "Q8_F32"]  # a scale and whole numbers, no more
LEVELS = [name for name, _, usable in core.isa_levels() if usable]
# RLLAMA_TEST_SIZES=few: a size of each kind, for builds that are many times slower.
FEW = os.environ.get("RLLAMA_TEST_SIZES") == "few"
THREADS = [1, 3] if FEW else [1, 2, 5]

SMALLEST = 2.0**-149  # the smallest f32
SMALLEST_NORMAL = 2.0**-126
LARGEST_DOT = 32 * 128 * 127  # of a block's whole numbers; the product of both scales goes with it


@lru_cache(maxsize=64)
def context(isa: str, n_threads: int = 1) -> core.Context:
    return core.Context(isa=isa, n_threads=n_threads)


def fit(fmt: str, n_cols: int) -> int:
    """The next number of columns that is whole blocks."""
    return -(-n_cols // BLOCK_LEN[fmt]) * BLOCK_LEN[fmt]


@dataclass(frozen=True, eq=False)
class Case:
    """A weight as the kernels see it and as the reference does."""

    fmt: str
    raw: Bytes
    n_rows: int
    n_cols: int

    @property
    def weight(self) -> core.Weight:
        return core.Weight(self.raw, FORMATS.index(self.fmt), self.n_rows, self.n_cols, "test")

    @cached_property
    def values(self) -> F64:
        return ref_ops.decode(self.fmt, self.raw, self.n_rows, self.n_cols)

    @cached_property
    def sizes(self) -> F64:
        """|scale * q| + |min| of every value."""
        return ref_ops.sizes(self.fmt, self.raw, self.n_rows, self.n_cols)

    @cached_property
    def blocks(self) -> tuple[F64, F64]:
        return ref_ops.decode_blocks(self.fmt, self.raw, self.n_rows, self.n_cols)


@lru_cache(maxsize=1000)
def random_weight(fmt: str, n_rows: int, n_cols: int, seed: int) -> Case:
    """Floats around 1; blocks with every byte possible and scales of both signs."""
    rng = np.random.default_rng([seed, n_rows, n_cols, FORMATS.index(fmt)])
    if fmt in FLOATS:
        values = rng.standard_normal((n_rows, n_cols)).astype(np.float32)
        return float_weight(fmt, values)
    if fmt not in BLOCKS:
        return Case(fmt, random_blocks(fmt, rng, n_rows * n_cols, 0.5), n_rows, n_cols)
    n_blocks = n_rows * n_cols // 32
    sign = rng.choice([-1.0, 1.0], n_blocks)
    scales = sign * rng.uniform(0.001, 0.02, n_blocks)
    return block_weight(fmt, scales, random_bytes(rng, fmt, n_blocks), n_rows, n_cols)


def random_bytes(rng: np.random.Generator, fmt: str, n_blocks: int) -> Bytes:
    """The whole numbers of blocks, every byte equally likely."""
    return rng.integers(0, 256, (n_blocks, 16 if fmt == "Q4_0" else 32), dtype=np.uint8)


def float_weight(fmt: str, values: F32) -> Case:
    n_rows, n_cols = values.shape
    if fmt == "BF16":
        raw = (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    else:
        with np.errstate(over="ignore"):
            raw = values.astype("<f4" if fmt == "F32" else "<f2").view(np.uint8)
    return Case(fmt, np.ascontiguousarray(raw.reshape(-1)), n_rows, n_cols)


def block_weight(
    fmt: str, scales: NDArray[np.floating], whole: Bytes, n_rows: int, n_cols: int
) -> Case:
    with np.errstate(over="ignore"):
        narrow = scales.astype("<f4" if fmt == "Q8_F32" else "<f2").view(np.uint8)
    raw = np.concatenate([narrow.reshape(len(whole), -1), whole], axis=1)
    return Case(fmt, np.ascontiguousarray(raw.reshape(-1)), n_rows, n_cols)


@lru_cache(maxsize=100)
def random_x(n_tokens: int, n_cols: int, seed: int) -> F32:
    rng = np.random.default_rng([seed, n_tokens, n_cols])
    return rng.standard_normal((n_tokens, n_cols)).astype(np.float32)


def matmul(ctx: core.Context, x: F32, *weights: core.Weight) -> list[F32]:
    """The outputs start as not-a-number: what a kernel leaves out shows."""
    outs = [np.full((len(x), w.shape[0]), np.nan, dtype=np.float32) for w in weights]
    ctx.matmul(core.Buf(x), weights, tuple(core.Buf(out) for out in outs))
    return outs


def rows_alone(ctx: core.Context, x: F32, weight: core.Weight) -> F32:
    """Every row of x as an op of its own."""
    return np.concatenate([matmul(ctx, x[t : t + 1], weight)[0] for t in range(len(x))])


def scaled_weight(fmt: str, scale: float, n_rows: int, n_cols: int) -> Case:
    """Random whole numbers under one scale, mins in proportion."""
    case = random_weight(fmt, n_rows, n_cols, seed=1)
    blocks = case.raw.copy().reshape(-1, BLOCK_BYTES[fmt])
    with np.errstate(invalid="ignore"):
        set_scales(fmt, blocks, np.full(len(blocks), scale))
    return Case(fmt, blocks.reshape(-1), n_rows, n_cols)


def rounds_x_to_bf16(isa: str, fmt: str) -> bool:
    return isa == "avx512bf16" and fmt == "BF16"


def expected(isa: str, case: Case, x: F32) -> tuple[F64, F64]:
    """What the kernels of this level should give, and how far off they may be.

    Floats: K products and K sums, each rounded once: (K + 2) * U * sum |x||w|. Blocks: the whole
    numbers are exact; a term per block, rounded in its scale, its product and its sum:
    (K/32 + 3) * U * sum |terms|. Beside it what falls below the smallest f32; the bf16 dot
    product counts everything below the smallest normal f32 as zero.

    Other formats: where a level has kernels for one, x is in 8 bits and every value of a sub-block
    of 16 is scale * q + min, with at most a handful of roundings beside the sums of K/16 terms:
    (K/16 + 8) * U * sum |x|(|scale * q| + |min|). Without kernels the rows become F32, rounded as
    the codec rounds, and the bound is that of F32.
    """
    n_cols = case.n_cols
    if case.fmt not in FLOATS + BLOCKS and context(isa).has_kernels(case.fmt):
        rounded = ref_ops.rounded_activations(x)
        want, _ = ref_ops.matmul(rounded, case.values)
        _, norm = ref_ops.matmul(rounded, case.sizes)
        return want, (n_cols / 16 + 8) * U * norm + n_cols / 16 * LARGEST_DOT * SMALLEST
    if case.fmt not in BLOCKS:
        bf16 = rounds_x_to_bf16(isa, case.fmt)
        want, norm = ref_ops.matmul(ref_ops.round_bf16(x) if bf16 else x, case.values)
        tiny = 2 * n_cols * (SMALLEST_NORMAL if bf16 else SMALLEST)
        return want, (n_cols + 2) * U * norm + tiny
    want, norm = ref_ops.matmul_blocks(x, *case.blocks)
    return want, (n_cols / 32 + 3) * U * norm + n_cols / 32 * LARGEST_DOT * SMALLEST


def assert_within(got: F32, want: F64, bound: F64, what: str) -> None:
    __tracebackhide__ = True
    wrong = ~(np.abs(got - want) <= bound)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{what}: {wrong.sum()} of {wrong.size} values off; first at {at}: got {got[at]!r}, "
            f"want {want[at]!r} within {np.broadcast_to(bound, got.shape)[at]:.3g}"
        )


def assert_same_bits(got: F32, want: F32, what: str) -> None:
    __tracebackhide__ = True
    differ = got.view(np.uint32) != want.view(np.uint32)
    if differ.any():
        at = tuple(int(i) for i in np.argwhere(differ)[0])
        raise AssertionError(f"{what}: first at {at}: {got[at]!r} is not {want[at]!r}")


def step_of(
    positions: NDArray[np.int32] | list[int],
    *,
    token_ids: list[int] | None = None,
    seq_start: list[int] | None = None,
    page_table: NDArray[np.int32] | None = None,
    logit_rows: list[int] | None = None,
) -> core.Step:
    """A step of one sequence, unless said otherwise; one table is that of the only group."""
    n = len(positions)
    pages = page_table if page_table is not None else np.zeros((1, 1), dtype=np.int32)
    return core.Step(
        Batch(
            np.array(token_ids or [0] * n, dtype=np.int32),
            np.array(positions, dtype=np.int32),
            np.array(seq_start or [0, n], dtype=np.int32),
            pages[np.newaxis] if pages.ndim == 2 else pages,
            np.array(logit_rows or [], dtype=np.int32),
        )
    )
