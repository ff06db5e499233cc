"""What attention costs behind a context: per shape, type of the cache and positions.

Every run walks as many layers as memory, not a cache of the CPU, must serve, as a model's steps do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from common import Timing, append_record, check_load, measure, table, usable_cores
from limits import Peaks

from rllama.backend import Backend, Cache, KVSpec, ScratchSpec, get_backend
from rllama.batch import Batch
from rllama.kv_groups import KVGroup

_PAGE_LEN = 64
_COLD_BYTES = 160 << 20
_FILL_TOKENS = 2048
_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}


@dataclass(frozen=True, slots=True)
class Shape:
    """Heads of a layer, and what a step brings to it.

    Units: positions before those of the step; window positions, 0 for all
    """

    n_kv_heads: int
    per_kv: int
    head_dim: int
    dtype: str
    positions: int
    n_seqs: int
    n_tokens: int
    window: int

    @property
    def n_heads(self) -> int:
        return self.n_kv_heads * self.per_kv

    @property
    def n_bytes(self) -> float:
        """What a layer must read of its cache."""
        seen = self.positions + self.n_tokens
        seen = min(seen, self.window + self.n_tokens - 1) if self.window else seen
        return self.n_seqs * seen * 2 * self.n_kv_heads * self.head_dim * _BYTES[self.dtype]

    @property
    def n_ops(self) -> int:
        """Multiplications and additions of a layer."""
        ends = range(self.positions + 1, self.positions + self.n_tokens + 1)
        seen = sum(min(end, self.window or end) for end in ends)
        return 4 * self.n_seqs * self.n_heads * self.head_dim * seen

    @property
    def pages_per_seq(self) -> int:
        return -(-(self.positions + self.n_tokens) // _PAGE_LEN)

    def batch(self, first: int, n_tokens: int) -> Batch:
        """The next `n_tokens` of every sequence from position `first` on."""
        positions = np.tile(np.arange(first, first + n_tokens, dtype=np.int32), self.n_seqs)
        pages = np.arange(self.n_seqs * self.pages_per_seq, dtype=np.int32)
        return Batch(
            np.zeros(len(positions), dtype=np.int32),
            positions,
            np.arange(self.n_seqs + 1, dtype=np.int32) * n_tokens,
            pages.reshape(1, self.n_seqs, -1),
            np.zeros(0, dtype=np.int32),
        )

    def __str__(self) -> str:
        tokens = "" if self.n_seqs * self.n_tokens == 1 else f", {self.n_seqs} x {self.n_tokens}"
        window = f", window {self.window}" if self.window else ""
        return (f"{self.n_kv_heads} x {self.per_kv}, {self.head_dim}, {self.dtype}, "
                f"{self.positions}{tokens}{window}")  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--heads", nargs="+", default=["4x8x64", "8x4x128", "32x1x128"],
                        help="KV heads x queries of each x width")  # fmt: skip
    parser.add_argument("--types", nargs="+", default=list(_BYTES), choices=list(_BYTES))
    parser.add_argument("--positions", nargs="+", default=[1800, 8000, 32000], type=int)
    parser.add_argument("--seqs", default=1, type=int)
    parser.add_argument("--tokens", default=1, type=int, help="of each sequence in the step")
    parser.add_argument("--window", default=0, type=int)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--isa", help="force an ISA level")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-record", action="store_true", help="append no lines to results/")
    return parser.parse_args()


def shapes(args: argparse.Namespace) -> list[Shape]:
    return [
        Shape(*map(int, heads.split("x")), dtype, positions, args.seqs, args.tokens, args.window)
        for heads in args.heads
        for dtype in args.types
        for positions in args.positions
    ]


def n_layers(shape: Shape) -> int:
    """Layers that no cache of the CPU holds; two at least, and few where a step is long."""
    return max(2, min(64, int(_COLD_BYTES / shape.n_bytes) + 1, 4096 // shape.n_tokens))


def fill(backend: Backend, kv: Cache, shape: Shape, layers: int) -> None:
    """Random keys and values at every position; who attends sees itself alone, which is cheap."""
    width, most = shape.n_kv_heads * shape.head_dim, _FILL_TOKENS * shape.n_seqs
    pool = backend.scratch(ScratchSpec(1, width, width, 1, most))
    rng = np.random.default_rng(1)
    for name in ("q", "k", "v"):
        buf = getattr(pool.take(most), name).array
        buf[:] = rng.standard_normal(buf.shape, dtype=np.float32)
    for first in range(0, shape.positions, _FILL_TOKENS):
        n_tokens = min(_FILL_TOKENS, shape.positions - first)
        step = backend.begin(shape.batch(first, n_tokens))
        s = pool.take(n_tokens * shape.n_seqs)
        for layer in range(layers):
            spec = backend.attend_spec(layer, scale=1.0, window=1)
            backend.attend(s.q, s.k, s.v, kv, spec, step, s.a)


def runner(backend: Backend, kv: Cache, shape: Shape, layers: int) -> Callable[[], None]:
    """A function that attends once in every layer."""
    q_dim, kv_dim = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    n_rows = shape.n_seqs * shape.n_tokens
    s = backend.scratch(ScratchSpec(1, q_dim, kv_dim, 1, n_rows)).take(n_rows)
    for buf in (s.q, s.k, s.v):
        buf.array[:] = np.random.default_rng(2).standard_normal(buf.array.shape)
    step = backend.begin(shape.batch(shape.positions, shape.n_tokens))
    scale = shape.head_dim**-0.5
    specs = [
        backend.attend_spec(layer, scale=scale, window=shape.window) for layer in range(layers)
    ]

    def run() -> None:
        for spec in specs:
            backend.attend(s.q, s.k, s.v, kv, spec, step, s.a)

    return run


def time_layer(backend: Backend, shape: Shape, repeats: int) -> Timing:
    """Seconds of attention in one layer."""
    layers = n_layers(shape)
    group = KVGroup(tuple(range(layers)), 0, shape.n_seqs * shape.pages_per_seq)
    kv = backend.kv_store(
        KVSpec((group,), shape.n_kv_heads, shape.head_dim, _PAGE_LEN, shape.dtype)
    )
    try:
        fill(backend, kv, shape, layers)
        timing = measure(runner(backend, kv, shape, layers), repeats=repeats)
    finally:
        kv.close()
    seconds = (timing.median_s, timing.min_s, timing.q1_s, timing.q3_s)
    return Timing(*(s / layers for s in seconds), repeats)


def main() -> int:
    args = parse_args()
    busy = check_load()
    backend = get_backend("cpu", isa=args.isa, n_threads=args.threads)
    peaks = Peaks(args.threads, memory_bytes=1 << 29)
    rows = []
    for shape in shapes(args):
        limits, timing = peaks.measure(passes=1), time_layer(backend, shape, args.repeats)
        rate, ops = shape.n_bytes / timing.median_s, shape.n_ops / timing.median_s
        rows.append([
            str(shape), f"{timing.median_s * 1e6:.0f}", f"{rate / 1e9:.1f}",
            f"{rate / limits.read:.0%}", f"{ops / 1e9:.0f}", f"{ops / limits.f32:.0%}",
        ])  # fmt: skip
        print("  ".join(rows[-1]), file=sys.stderr)
        if not args.no_record:
            options = {**asdict(shape), "threads": args.threads, "isa": backend.isa}
            append_record("attention", busy=busy, options=options, limits=limits.as_dict(),
                          **timing.as_dict())  # fmt: skip
    peaks.close()
    backend.close()
    header = ("KV heads x queries, width, type, positions", "us", "GB/s", "of the reads", "Gop/s",
              "of the f32 peak")  # fmt: skip
    print(table(header, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
