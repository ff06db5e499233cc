"""Where operands lie: at any byte, and never read or written beyond their ends."""

from __future__ import annotations

import sys
from textwrap import dedent

import numpy as np
import pytest
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
from kernels.process import run_script

from rllama._kernels import core


@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
def test_memory_beyond_operands_is_not_touched(isa: str) -> None:
    """Each operand of each op ends at the border of a page that may not be touched, or starts
    right after one; a violation ends the process, and its last line says which op it was."""
    said = run_script("import sys; from kernels.guarded import main; main(sys.argv[1])", isa)
    assert said.splitlines()[-1] == "done"


@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
@pytest.mark.parametrize("end", [True, False], ids=["after", "before"])
def test_memory_guard_ends_the_process(end: bool) -> None:
    script = f"""
        import ctypes, numpy as np
        from kernels.guarded import guarded
        array = guarded(np.zeros(5), end={end})
        outside = array.ctypes.data + (array.nbytes if {end} else -1)
        ctypes.string_at(array.ctypes.data, array.nbytes)
        print("inside is fine", flush=True)
        ctypes.string_at(outside, 1)
    """
    with pytest.raises(AssertionError, match=r"process ended with -?\d+: inside is fine"):
        run_script(dedent(script))


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("fmt", FORMATS)
def test_memory_weights_may_lie_at_any_byte(isa: str, fmt: str, offset: int) -> None:
    for n_rows, least in ((1, 32), (5, 64), (17, 96), *(((9, 7),) if fmt in FLOATS else ())):
        n_cols = fit(fmt, least)
        case = random_weight(fmt, n_rows, n_cols, seed=1)
        area = np.zeros(len(case.raw) + 8, dtype=np.uint8)
        moved = area[offset : offset + len(case.raw)]
        moved[:] = case.raw
        weight = core.Weight(moved, FORMATS.index(fmt), n_rows, n_cols)
        ctx, step = context(isa), step_of([0, 1], token_ids=[n_rows - 1, 0])
        for n_tokens in (1, 40):
            x = random_x(n_tokens, n_cols, seed=2)
            got, want = matmul(ctx, x, weight)[0], matmul(ctx, x, case.weight)[0]
            assert_same_bits(got, want, f"N{n_rows} K{n_cols} T{n_tokens}")
        rows = np.zeros((2, 2, n_cols), dtype=np.float32)
        ctx.embed(step, weight, core.Buf(rows[0]))
        ctx.embed(step, case.weight, core.Buf(rows[1]))
        assert_same_bits(rows[0], rows[1], "embed")
