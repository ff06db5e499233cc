"""Matrix products per weight type and number of tokens, through the Backend protocol.

Each run walks enough copies of the matrix that no cache holds them, as a model's layers do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np
from common import Timing, append_record, check_load, measure, table, usable_cores
from limits import Limits, Peaks
from make_model import DRAW, draw

from rllama.backend import Backend, ScratchSpec, get_backend
from rllama.dtypes import DType, dtype_by_name
from rllama.tensor import TensorView

_COLD_BYTES = 256 << 20
_TOKENS = (1, 2, 4, 8, 12, 16, 32, 64, 512)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--types", nargs="+", default=list(DRAW), type=str.upper)
    parser.add_argument("--tokens", nargs="+", default=list(_TOKENS), type=int)
    parser.add_argument("--rows", type=int, default=5632)
    parser.add_argument("--cols", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--isa", help="force an ISA level")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-record", action="store_true", help="append no lines to results/")
    return parser.parse_args()


def random_views(dtype: DType, n_rows: int, n_cols: int) -> list[TensorView]:
    """As many views of random matrices as memory, not a cache, must serve."""
    n_copies = max(2, -(-_COLD_BYTES // dtype.n_bytes((n_rows, n_cols))))
    rng = np.random.Generator(np.random.SFC64(1))
    drawn = [draw(dtype.name, rng, n_rows * n_cols, n_cols**-0.5) for _ in range(n_copies)]
    shape = (n_rows, n_cols)
    return [TensorView(data.data, dtype, shape, f"random {i}") for i, data in enumerate(drawn)]


def runner(
    backend: Backend, views: list[TensorView], n_tokens: int, n_copies: int
) -> Callable[[], None]:
    """A function that multiplies `n_tokens` rows by `n_copies` of the matrices."""
    n_rows, n_cols = views[0].shape
    weights = [backend.place(view) for view in views[:n_copies]]
    spec = ScratchSpec(dim=n_cols, q_dim=n_cols, kv_dim=n_cols, ffn_dim=n_rows, max_tokens=n_tokens)
    scratch = backend.scratch(spec).take(n_tokens)
    scratch.x.array[:] = np.random.default_rng(2).standard_normal((n_tokens, n_cols))

    def run() -> None:
        for weight in weights:
            backend.matmul(scratch.x, (weight,), (scratch.gate,))

    return run


def row(
    dtype: DType, n_tokens: int, seconds: float, n_bytes: int, n_ops: int, limits: Limits
) -> list[str]:
    """One line of the table: rates of one product, and the share of what binds it."""
    read_s, peak = n_bytes / limits.read, limits.peak_for(dtype.name)
    bound_s = max(read_s, n_ops / peak if peak else 0.0)
    return [
        f"{dtype.name} x {n_tokens}",
        f"{seconds * 1e6:.0f}",
        f"{n_bytes / seconds / 1e9:.1f}",
        f"{n_ops / seconds / 1e9:.0f}",
        f"{bound_s / seconds:.0%}",
    ]


def main() -> int:
    args = parse_args()
    busy = check_load()
    backend = get_backend("cpu", isa=args.isa, n_threads=args.threads)
    peaks = Peaks(args.threads, memory_bytes=1 << 29)
    rows = []
    for dtype in map(dtype_by_name, args.types):
        views = random_views(dtype, args.rows, args.cols)
        n_bytes, limits = views[0].n_bytes, peaks.measure(passes=1)
        for n_tokens in args.tokens:
            n_copies = len(views) if n_tokens < 64 else max(2, len(views) * 32 // n_tokens)
            timing = measure(runner(backend, views, n_tokens, n_copies), repeats=args.repeats)
            per_product = timing.median_s / n_copies
            n_ops = 2 * n_tokens * args.rows * args.cols
            rows.append(row(dtype, n_tokens, per_product, n_bytes, n_ops, limits))
            print("  ".join(rows[-1]), file=sys.stderr)
            if not args.no_record:
                save(args, dtype, n_tokens, timing, n_copies, limits, busy=busy)
    peaks.close()
    backend.close()
    print(table(("type x tokens", "us", "GB/s", "Gop/s", "of the limit"), rows))
    return 0


def save(args: argparse.Namespace, dtype: DType, n_tokens: int, timing: Timing, n_copies: int,
         limits: Limits, *, busy: bool) -> None:  # fmt: skip
    options = {"type": dtype.name, "tokens": n_tokens, "rows": args.rows, "cols": args.cols,
               "threads": args.threads, "isa": args.isa, "products_per_run": n_copies}  # fmt: skip
    append_record("matmul", busy=busy, options=options, limits=limits.as_dict(), **timing.as_dict())


if __name__ == "__main__":
    sys.exit(main())
