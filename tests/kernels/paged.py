"""Sequences in a paged cache for the attention tests: make, fill, attend, and the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from kernels.cases import context, random_x, step_of
from numpy.typing import NDArray
from reference import ref_ops
from reference.ref_ops import F32, F64, U

from rllama._kernels import core

PAGE = core.PAGE_LEN
I32 = NDArray[np.int32]


@dataclass(frozen=True)
class Shape:
    n_kv_heads: int
    group: int
    head_dim: int
    dtype: str
    window: int = 0
    softcap: float = 0.0
    has_sinks: bool = False

    @property
    def n_heads(self) -> int:
        return self.n_kv_heads * self.group

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    @property
    def sinks(self) -> F32 | None:
        """Around the largest scores, some far below."""
        return random_x(1, self.n_heads, seed=77) * 5 if self.has_sinks else None

    def first_seen(self, position: int) -> int:
        return max(0, position - self.window + 1) if self.window else 0

    def spec(self, layer: int = 0) -> core.AttendSpec:
        sinks = self.sinks
        placed = None
        if sinks is not None:
            placed = core.Weight(sinks.view(np.uint8).reshape(-1), 0, 1, self.n_heads)
        return core.AttendSpec(layer, self.scale, self.softcap, self.window, placed)

    @property
    def q_dim(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.n_kv_heads * self.head_dim


@dataclass(frozen=True, eq=False)
class Sequence:
    """Queries, keys and values of all positions of one sequence, and the pages that it owns."""

    shape: Shape
    q: F32
    k: F32
    v: F32
    pages: I32

    def __len__(self) -> int:
        return len(self.q)


Piece = tuple[Sequence, int, int]  # positions first .. last of a sequence, last excluded


@lru_cache(maxsize=64)
def make_sequence(shape: Shape, n_positions: int, seed: int) -> Sequence:
    """Pages in shuffled order out of twice as many."""
    n_pages = (n_positions + PAGE - 1) // PAGE
    order = np.random.default_rng(seed).permutation(2 * n_pages)[:n_pages]
    return Sequence(
        shape,
        random_x(n_positions, shape.q_dim, seed),
        random_x(n_positions, shape.kv_dim, seed + 1000),
        random_x(n_positions, shape.kv_dim, seed + 2000),
        order.astype(np.int32),
    )


def make_store(shape: Shape, n_pages: int, n_layers: int = 1) -> core.KVStore:
    groups = [(tuple(range(n_layers)), n_pages)]
    return core.KVStore(groups, shape.n_kv_heads, shape.head_dim, shape.dtype)


def attend(ctx: core.Context, kv: core.KVStore, pieces: list[Piece], layer: int = 0) -> F32:
    """One step over pieces of sequences of one shape; pages that nobody sees are not in it."""
    shape = pieces[0][0].shape
    cut = [slice(first, last) for _, first, last in pieces]
    q, k, v = (
        np.concatenate([getattr(seq, name)[c] for (seq, _, _), c in zip(pieces, cut, strict=True)])
        for name in ("q", "k", "v")
    )
    widest = max(len(seq.pages) for seq, _, _ in pieces)
    table = np.full((len(pieces), widest), -1, dtype=np.int32)
    for row, (seq, first, last) in zip(table, pieces, strict=True):
        seen = slice(shape.first_seen(first) // PAGE, (last + PAGE - 1) // PAGE)
        row[seen] = seq.pages[seen]
    counts = [last - first for _, first, last in pieces]
    positions = np.concatenate([np.arange(f, n, dtype=np.int32) for _, f, n in pieces])
    step = step_of(positions, seq_start=[0, *np.cumsum(counts)], page_table=table)
    out = np.full_like(q, np.nan)
    spec = shape.spec(layer)
    ctx.attend(core.Buf(q), core.Buf(k), core.Buf(v), kv, spec, step, core.Buf(out))
    return out


def fill(isa: str, kv: core.KVStore, seq: Sequence, n: int, layer: int = 0) -> None:
    """Store keys and values of the first n positions, attending with one query head per key head
    only, which is cheap."""
    narrow = replace(
        seq,
        shape=replace(seq.shape, group=1),
        q=np.ascontiguousarray(seq.q[:, : seq.k.shape[1]]),
    )
    if n:
        attend(context(isa), kv, [(narrow, 0, n)], layer)


@lru_cache(maxsize=256)
def reference(shape: Shape, seq: Sequence, positions: tuple[int, ...]) -> tuple[F64, F64]:
    """What attention gives at these positions, and how far off f32 may be, both [T, q_dim].

    A score is d products and sums, one scaling of q and one subtraction of the maximum:
    delta = (d + 5) * U * largest sum |q||k|; a cap adds its tanh, good to 4 ulp, and two roundings:
    10 U more. A weight is off by e^(2 delta) and 4 U of its own; n
    weights and n products are added, and a few more roundings merge pages and spans:
    (2.1 * delta + (2 n + 64) * U) * sum weight |v|.
    """
    heads = (len(positions), -1, shape.head_dim)
    k, v = (
        ref_ops.store(a.reshape(len(a), shape.n_kv_heads, shape.head_dim), shape.dtype)
        for a in (seq.k, seq.v)
    )
    q = seq.q[list(positions)].reshape(heads)
    sinks = shape.sinks
    out, norm, largest = ref_ops.attention(
        q, k, v, list(positions), scale=shape.scale, window=shape.window, softcap=shape.softcap,
        sinks=None if sinks is None else sinks[0],
    )  # fmt: skip
    delta = (shape.head_dim + 5 + (10 if shape.softcap else 0)) * U * largest
    n = np.array(positions, dtype=np.float64)[:, None, None] + 1
    bound = (2.1 * delta + (2 * n + 64) * U) * norm
    flat = (len(positions), shape.q_dim)
    return out.reshape(flat), bound.reshape(flat)
