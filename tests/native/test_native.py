"""The kernels without Python: under sanitizers here, and on arm64 and old x86 under an emulator."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from native.builder import KERNELS, Target, build_once, link_check

MAIN = Path(__file__).with_name("kernel_check.c")
pytestmark = pytest.mark.skipif(not KERNELS.exists(), reason="needs the whole source tree")
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def results(command: list[str]) -> dict[str, str]:
    """What the check says of each level. Fails with the end of its output if it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, **ENVIRONMENT}
    )
    end = done.stdout[-500:] + done.stderr[-3000:]
    assert done.returncode == 0, f"exit {done.returncode}: {end}"
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


def checked(said: dict[str, str]) -> list[str]:
    """The levels that ran: as many checks at each, and the same bits from quantised weights."""
    counts = {level: text for level, text in said.items() if " checks, products " in text}
    assert len(set(counts.values())) == 1
    assert int(re.findall(r"\d+", next(iter(counts.values())))[0]) > 50_000
    return list(counts)


@pytest.fixture(scope="session")
def arm64_check(shared_folder: Path) -> Path:
    """The check for arm64, without threads and without shared libraries."""
    need("aarch64-linux-gnu-gcc", "qemu-aarch64")
    target = Target("aarch64-linux-gnu-gcc", "aarch64", link=("-static",))
    return build_once(target, MAIN, shared_folder / "arm64")


@pytest.mark.parametrize(
    ("cpu", "sizes", "levels"),
    [
        ("cortex-a53", "short", ["scalar", "neon"]),
        ("neoverse-n1", "short", ["scalar", "neon", "neon_dot"]),
        ("max", "short", ["scalar", "neon", "neon_dot", "neon_i8mm"]),
        pytest.param(
            "max", "all", ["scalar", "neon", "neon_dot", "neon_i8mm"], marks=pytest.mark.slow
        ),
    ],
)
def test_native_arm64_levels_of_each_cpu(
    arm64_check: Path, cpu: str, sizes: str, levels: list[str]
) -> None:
    said = results(["qemu-aarch64", "-cpu", cpu, str(arm64_check), sizes])
    assert checked(said) == levels
    assert said["chosen"] == levels[-1]
    others = {"scalar", "neon", "neon_dot", "neon_i8mm"} - set(levels)
    assert all(said[level] == "not usable here" for level in others)


@pytest.fixture(scope="session")
def sanitized_check(sanitized_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The check for this machine, linked with what the sanitized extension is made of."""
    return link_check(sanitized_build, MAIN, tmp_path_factory.mktemp("sanitized"))


def test_native_levels_of_this_cpu_under_sanitizers(sanitized_check: Path) -> None:
    said = results([str(sanitized_check)])
    assert said["chosen"] == checked(said)[-1]


@pytest.fixture(scope="session")
def x86_check(shared_folder: Path) -> Path:
    """The check as it is released, for CPUs that an emulator plays."""
    need("gcc", "qemu-x86_64")
    if platform.machine() != "x86_64":
        pytest.skip("needs an x86-64 compiler")
    target = Target("gcc", "x86_64", link=("-static",))
    return build_once(target, MAIN, shared_folder / "x86")


@pytest.mark.parametrize(
    ("cpu", "levels"),
    [("Nehalem", ["scalar"]), ("Haswell", ["scalar", "avx2"])],
)
def test_native_x86_runs_on_older_cpus(x86_check: Path, cpu: str, levels: list[str]) -> None:
    """One build: SSE4.2 is enough, and nothing beyond what the CPU has is ever executed."""
    said = results(["qemu-x86_64", "-cpu", cpu, str(x86_check), "short"])
    assert checked(said) == levels
    assert said["chosen"] == levels[-1]
    assert said["avx512bf16"] == "not usable here"
