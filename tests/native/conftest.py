"""Builds that are made once for all tests that run on them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from native.builder import ROOT, alone

SCRIPT = ROOT / ".ci" / "asan"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Among several workers the longest tests go first, so that none is left alone with them."""
    if hasattr(config, "workerinput"):
        here = Path(__file__).parent
        items.sort(key=lambda item: here not in item.path.parents)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run that all workers share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def runtime_is_here() -> bool:
    """gcc names the libraries that it lacks without a folder."""
    for name in ("libasan.so", "libubsan.so"):
        command = ["gcc", f"-print-file-name={name}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not Path(done.stdout.strip()).is_absolute():
            return False
    return True


def run_script(*args: str) -> str:
    """Run the script of the sanitized build with this interpreter."""
    __tracebackhide__ = True
    done = subprocess.run(
        [str(SCRIPT), *args],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=900,
    )
    end = done.stdout[-3000:] + done.stderr[-5000:]
    assert done.returncode == 0, f"exit {done.returncode}: {end}"
    return done.stdout


@pytest.fixture(scope="session")
def sanitized_build(shared_folder: Path) -> Path:
    """The folder of its objects. Skips where it cannot be made."""
    if sys.platform != "linux" or not SCRIPT.exists():
        pytest.skip("needs Linux and the whole source tree")
    if "libasan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("already sanitized")
    if shutil.which("gcc") is None or not runtime_is_here():
        pytest.skip("gcc with libasan and libubsan is not installed")
    for module in ("Cython", "pybind11", "setuptools"):
        pytest.importorskip(module, reason="needs the build requirements")
    with alone(shared_folder / "asan.lock"):
        run_script("--build")
    return ROOT / "build" / "asan" / "temp"
