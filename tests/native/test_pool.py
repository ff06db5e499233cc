"""The pool of threads by itself, under the sanitizer that finds races."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from native.builder import KERNELS

MAIN = Path(__file__).with_name("pool_check.c")
pytestmark = [
    pytest.mark.skipif(not KERNELS.exists(), reason="needs the whole source tree"),
    pytest.mark.skipif(sys.platform != "linux", reason="other systems have other threads"),
]


@pytest.mark.parametrize(
    "flags", [[], ["-fopenmp"], ["-fsanitize=thread", "-g"]], ids=["plain", "openmp", "tsan"]
)
def test_pool_does_every_item_once_and_returns_when_all_are_out(
    tmp_path: Path, flags: list[str]
) -> None:
    compiler = os.environ.get("CC", "gcc").split()
    if shutil.which(compiler[-1]) is None:
        pytest.skip(f"{compiler[-1]} is not installed")
    program = tmp_path / "check"
    command = [*compiler, "-std=c11", "-O2", "-D_DEFAULT_SOURCE", f"-I{KERNELS}", "-pthread",
               *flags, str(MAIN), str(KERNELS / "pool.c"), "-o", str(program)]  # fmt: skip
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode and flags and "tsan" in built.stderr:
        pytest.skip("the compiler has no thread sanitizer")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program), "5000"], capture_output=True, text=True, timeout=120)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run on this system")
    assert (done.returncode, done.stdout) == (0, "5000 jobs\n"), done.stderr[-3000:]
