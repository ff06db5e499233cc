"""What the host program has set: rounding and subnormals of the FPU, limits on threads."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from kernels.cases import (
    FEW,
    FORMATS,
    assert_same_bits,
    context,
    fit,
    matmul,
    random_weight,
    random_x,
    step_of,
)
from kernels.paged import Shape, attend, fill, make_sequence, make_store
from kernels.process import run_script
from reference.ref_ops import F32

from rllama._kernels import core

FLUSH = 0x8040  # FTZ and DAZ
ROUND_DOWN, ROUND_UP, ROUND_TO_ZERO = 0x2000, 0x4000, 0x6000
STATES = {
    "flush-down": FLUSH | ROUND_DOWN,
    "flush": FLUSH,
    "up": ROUND_UP,
    "flush-zero": FLUSH | ROUND_TO_ZERO,
}
MXCSR = 28  # where glibc's fenv_t keeps it


def get_mxcsr() -> int:
    env = (ctypes.c_uint8 * 64)()
    ctypes.CDLL(None).fegetenv(env)
    return int.from_bytes(bytes(env[MXCSR : MXCSR + 4]), "little")


@contextmanager
def mxcsr(bits: int) -> Iterator[None]:
    """Run with these bits set in the control register of this thread."""
    libm = ctypes.CDLL(None)
    old, new = (ctypes.c_uint8 * 64)(), (ctypes.c_uint8 * 64)()
    libm.fegetenv(old)
    ctypes.memmove(new, old, 64)
    value = int.from_bytes(bytes(old[MXCSR : MXCSR + 4]), "little") | bits
    new[MXCSR : MXCSR + 4] = list(value.to_bytes(4, "little"))
    libm.fesetenv(new)
    try:
        yield
    finally:
        libm.fesetenv(old)


@lru_cache
def x_with_subnormals(n_tokens: int, n_cols: int) -> F32:
    """Made once, so that it is made under the usual state."""
    x = random_x(n_tokens, n_cols, seed=2).copy()
    x[1] *= np.float32(1e-39)
    return x


FREQUENCIES = 10000.0 ** (-np.arange(10) / 10)


def every_matmul(isa: str, n_threads: int) -> F32:
    """Ordinary values beside subnormal ones, in every format, few tokens and many."""
    outs = []
    for fmt in FORMATS:
        case = random_weight(fmt, 130, fit(fmt, 96), seed=1)
        for n_tokens in (3, 40):
            x = x_with_subnormals(n_tokens, case.n_cols)
            (out,) = matmul(context(isa, n_threads), x, case.weight)
            outs.append(out.reshape(-1))
    return np.concatenate(outs)


def every_attention(isa: str, n_threads: int) -> F32:
    """A piece of a prompt, and a decode whose spans are merged at the end."""
    outs = []
    for dtype in ("f16", "f32"):
        shape = Shape(1, 2, 20, dtype)
        seq = make_sequence(shape, 1200, seed=3)
        kv = make_store(shape, 2 * len(seq.pages))
        fill(isa, kv, seq, 1100)
        for first, last in ((1100, 1199), (1199, 1200)):
            outs.append(attend(context(isa, n_threads), kv, [(seq, first, last)]).reshape(-1))
    return np.concatenate(outs)


def every_row_op(isa: str, n_threads: int) -> F32:
    ctx, x = context(isa, n_threads), random_x(40, 60, seed=4)
    norm, gate, turned = (core.Buf(x.copy()) for _ in range(3))
    weight = random_weight("F32", 1, 60, seed=5).weight
    ctx.rms_norm(norm, weight, 1e-5, norm)
    ctx.glu(gate, core.Buf(x))
    step = step_of(np.arange(20, 60, dtype=np.int32), token_ids=[3] * 40)
    table = core.RopeTable(FREQUENCIES, 64)
    ctx.rope(turned, turned, step, table, "half")
    rows = core.Buf.zeros(40, 96)
    half = np.full((8, 96), 3e-6, dtype=np.float16)  # a subnormal of f16
    ctx.embed(step, core.Weight(half.view(np.uint8).reshape(-1), 1, 8, 96), rows)
    return np.concatenate([b.array.reshape(-1) for b in (norm, gate, turned, rows)])


@pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc",
    reason="sets MXCSR through glibc's fenv_t",
)
@pytest.mark.parametrize("n_threads", [2] if FEW else [1, 2])
@pytest.mark.parametrize("state", list(STATES)[: 1 if FEW else None])
@pytest.mark.parametrize("work", [every_matmul, every_attention, every_row_op])
def test_host_fpu_state_changes_nothing_and_is_kept(
    isa: str, work: Callable[[str, int], F32], state: str, n_threads: int
) -> None:
    want = work(isa, n_threads)
    with mxcsr(STATES[state]):
        before = get_mxcsr()
        tiny = np.float32(1e-39) * np.float32(2.0)
        got = work(isa, n_threads)
        after = get_mxcsr()
    assert before & STATES[state] == STATES[state]
    assert (tiny == 0) == state.startswith("flush")  # the state is real
    assert before & ~0x3F == after & ~0x3F  # all but the sticky exception flags
    assert_same_bits(got, want, state)


LIMITED = """
import logging, os, resource, sys
import numpy as np
from kernels.cases import matmul, random_weight, random_x
from rllama.cpu import CpuBackend

logging.basicConfig(stream=sys.stdout, format="%(message)s")
more = int(sys.argv[1])
case, x = random_weight("Q8_0", 515, 512, seed=1), random_x(64, 512, seed=2)
want = matmul(CpuBackend(n_threads=1), x, case.weight)[0]
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid(61234, 61234, 61234)
    os.setresuid(61234, 61234, 61234)  # root is under no limit
threads = len(os.listdir("/proc/self/task"))
resource.setrlimit(resource.RLIMIT_NPROC, (threads + more if more else 1,) * 2)
backend = CpuBackend(n_threads=4)
assert np.array_equal(matmul(backend, x, case.weight)[0], want)
print(backend.n_threads)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_NPROC and /proc")
def test_host_that_starts_no_threads_gets_one_and_a_note() -> None:
    said = run_script(LIMITED, "0").splitlines()
    assert said == ["the system starts only 1 of 4 threads", "1"]


@pytest.mark.skipif(
    sys.platform != "linux" or os.getuid() != 0, reason="needs a user without other processes"
)
def test_host_that_starts_some_threads_gets_those() -> None:
    said = run_script(LIMITED, "2").splitlines()
    assert said == ["the system starts only 3 of 4 threads", "3"]


def test_host_with_an_unusable_omp_variable_still_runs() -> None:
    script = dedent("""
        from kernels.cases import matmul, random_weight, random_x
        from rllama.cpu import CpuBackend
        backend = CpuBackend()
        matmul(backend, random_x(64, 512, seed=1), random_weight("Q8_0", 515, 512, seed=2).weight)
        print(backend.n_threads >= 1)
    """)
    for value in ("0", "-3", "abc", "\u00b2", "100000", "4,2", ""):
        assert run_script(script, OMP_NUM_THREADS=value).strip() == "True"


@pytest.mark.skipif(
    sys.platform != "linux" or core.parallel_kind() != "OpenMP", reason="needs libgomp and /proc"
)
def test_host_with_another_openmp_library_is_noted_and_works(tmp_path: Path) -> None:
    """A copy of libgomp under another name runs a team of its own between our ops."""
    script = dedent("""
        import ctypes, logging, shutil, sys
        from kernels.cases import matmul, random_weight, random_x
        from rllama.cpu import CpuBackend
        from rllama.threads import openmp_runtimes
        (own,) = openmp_runtimes()
        backend = CpuBackend(n_threads=2)
        case, x = random_weight("Q8_0", 515, 512, seed=1), random_x(64, 512, seed=2)
        want = matmul(CpuBackend(n_threads=1), x, case.weight)[0].tobytes()
        other = ctypes.CDLL(shutil.copy(own, sys.argv[1]))
        calls = []
        body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(calls.append)
        for _ in range(10):
            other.GOMP_parallel(body, None, 2, 0)
            assert matmul(backend, x, case.weight)[0].tobytes() == want
        assert len(calls) == 20
        logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
        CpuBackend(n_threads=1)
    """)
    said = run_script(script, str(tmp_path / "libgomp-copy.so.1"))
    assert said.startswith("more than one OpenMP library in this process: ")
    assert "libgomp-copy.so.1" in said
