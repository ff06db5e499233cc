"""Every op on memory with an unmapped page right before or right after it.

Run as `python -m kernels.guarded LEVEL` in a process of its own: whatever reads or writes beyond
its operands ends it with a segmentation fault, after it has said on stdout what it was doing.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np
from kernels.cases import (
    FLOATS,
    FORMATS,
    assert_same_bits,
    context,
    fit,
    matmul,
    random_weight,
    random_x,
    step_of,
)
from numpy.typing import NDArray

from rllama._kernels import core

PAGE = mmap.PAGESIZE
PROT_NONE = 0
_libc = ctypes.CDLL(None, use_errno=True)


def guarded(array: NDArray, *, end: bool) -> NDArray:
    """A copy whose last byte (or first) borders on a page that may not be touched."""
    n_bytes = max(PAGE, (array.nbytes + PAGE - 1) // PAGE * PAGE)
    area = mmap.mmap(-1, n_bytes + 2 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for guard in (address, address + PAGE + n_bytes):
        if _libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(PAGE), PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    first = PAGE + (n_bytes - array.nbytes if end else 0)
    copy = np.frombuffer(area, dtype=array.dtype, count=array.size, offset=first)
    copy = copy.reshape(array.shape)
    copy[...] = array
    return copy


def check_matmul(isa: str, fmt: str, end: bool) -> None:
    for n_rows in (1, 3, 5, 16, 17, 40):
        for n_cols in (1, 9, 31, 172) if fmt in FLOATS else (fit(fmt, 32), fit(fmt, 288)):
            case = random_weight(fmt, n_rows, n_cols, seed=1)
            raw = guarded(case.raw, end=end)
            weight = core.Weight(raw, FORMATS.index(fmt), n_rows, n_cols)
            for n_tokens in (1, 4, 13, 40):
                print(f"matmul {fmt} N{n_rows} K{n_cols} T{n_tokens} end={end}", flush=True)
                x = random_x(n_tokens, n_cols, seed=2)
                out = guarded(np.zeros((n_tokens, n_rows), dtype=np.float32), end=end)
                context(isa).matmul(core.Buf(guarded(x, end=end)), (weight,), (core.Buf(out),))
                assert_same_bits(out, matmul(context(isa), x, case.weight)[0], "guarded")
            ids = [n_rows - 1, 0]
            rows = guarded(np.zeros((2, n_cols), dtype=np.float32), end=end)
            context(isa).embed(step_of([0, 1], token_ids=ids), weight, core.Buf(rows))
            plain = np.zeros_like(rows)
            context(isa).embed(step_of([0, 1], token_ids=ids), case.weight, core.Buf(plain))
            assert_same_bits(rows, plain, "embed")


def check_rows(isa: str, end: bool) -> None:
    ctx = context(isa)
    for width in (1, 3, 7, 8, 15, 16, 17, 33, 63, 64, 65, 100):
        print(f"rows of {width} end={end}", flush=True)
        x = guarded(random_x(3, width, seed=3), end=end)
        out = guarded(np.zeros_like(x), end=end)
        norm = guarded(random_x(1, width, seed=4), end=end)
        ctx.rms_norm(
            core.Buf(x), core.Weight(norm.view(np.uint8).reshape(-1), 0, 1, width), 1e-5,
            core.Buf(out),
        )  # fmt: skip
        for activation in ("silu", "gelu", "gelu_tanh", "swiglu_clamped"):
            ctx.glu(core.Buf(out), core.Buf(x), activation)
        ctx.add(core.Buf(x), core.Buf(out), 0.5)
        ctx.add_bias(core.Buf(out), core.Weight(norm.view(np.uint8).reshape(-1), 0, 1, width))
        ctx.scale(core.Buf(out), 0.5)
        ctx.grow(core.Buf(out), step_of([5, 6, 7]), 0.1, 2)
        ctx.softcap(core.Buf(out), 1.0, 3.0)
        table = core.RopeTable(guarded(np.ones(width), end=end), 4)
        heads = guarded(random_x(3, 2 * width, seed=5), end=end)
        step = step_of([1, 2, 3])
        for style in ("half", "interleaved"):
            ctx.rope(core.Buf(heads), core.Buf(heads), step, table, style)


def check_moe(isa: str, end: bool) -> None:
    """Experts whose last byte is the last one of a page, with more and with fewer tokens."""
    for fmt, dim, ffn in (("F32", 9, 7), ("Q4_0", 32, 64), ("BF16", 17, 33)):
        print(f"moe {fmt} end={end}", flush=True)

        def weight(n_rows: int, n_cols: int, seed: int, fmt: str = fmt) -> core.Weight:
            case = random_weight(fmt, n_rows, n_cols, seed=seed)
            raw = guarded(case.raw, end=end)
            return core.Weight(raw, FORMATS.index(fmt), n_rows, n_cols)

        gate, up = (tuple(weight(ffn, dim, 10 * i + e) for e in range(3)) for i in (1, 2))
        down = tuple(weight(dim, ffn, 30 + e) for e in range(3))
        router = random_weight("F32", 3, dim, seed=8).weight
        experts = core.Experts(router, gate, up, down, n_used=2, normalise=True)
        for n_tokens in (1, 5, 60):
            x = guarded(random_x(n_tokens, dim, seed=9), end=end)
            context(isa).moe(core.Buf(x), experts, core.Buf(guarded(np.zeros_like(x), end=end)))


def check_attend(isa: str, end: bool) -> None:
    for dtype in ("f16", "f32", "q8_0"):
        for head_dim in (1, 8, 20, 33, 64):
            print(f"attend {dtype} d{head_dim} end={end}", flush=True)
            kv = core.KVStore([((0,), 2)], 1, head_dim, dtype)
            pages = guarded(np.array([[1, 0]], dtype=np.int32), end=end)
            for n_heads in (1, 3):
                sinks = guarded(random_x(1, n_heads, seed=9), end=end).view(np.uint8).reshape(-1)
                placed = core.Weight(sinks, 0, 1, n_heads)
                for first, n, window in ((0, 1, 0), (1, 5, 3), (6, 100, 0), (90, 20, 5)):
                    q = guarded(random_x(n, n_heads * head_dim, seed=6), end=end)
                    k = guarded(random_x(n, head_dim, seed=7), end=end)
                    v = guarded(random_x(n, head_dim, seed=8), end=end)
                    out = guarded(np.full_like(q, np.nan), end=end)
                    step = step_of(np.arange(first, first + n, dtype=np.int32), page_table=pages)
                    spec = core.AttendSpec(0, 0.3, 2.0 if window else 0.0, window, placed)
                    context(isa).attend(*map(core.Buf, (q, k, v)), kv, spec, step, core.Buf(out))
                    assert np.isfinite(out).all()


def main(isa: str) -> None:
    for end in (True, False):
        check_rows(isa, end)
        check_moe(isa, end)
        check_attend(isa, end)
        for fmt in FORMATS:
            check_matmul(isa, fmt, end)
    print("done")


if __name__ == "__main__":
    main(sys.argv[1])
