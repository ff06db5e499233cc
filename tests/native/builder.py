"""Compile the kernels without Python, with the very flags that setup.py has for each level."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "src" / "rllama" / "_kernels"
WANTED = {"DRIVERS", "AVX512", "X86", "ARM64", "LEVELS", "UNIX_FLAGS", "SANITIZE"}


def setup_constants() -> dict[str, Any]:
    """The plain assignments of setup.py that say what is compiled how."""
    found: dict[str, Any] = {}
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in WANTED:
            exec(compile(ast.Module([node], []), "setup.py", "exec"), found)
    assert found.keys() >= WANTED, "setup.py has other names now"
    return found


@dataclass(frozen=True)
class Target:
    """A compiler, an architecture as setup.py names it, and flags for every file and the link."""

    compiler: str
    machine: str
    flags: tuple[str, ...] = ()
    link: tuple[str, ...] = ()


def run(command: Sequence[str | Path]) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr[-4000:]}"


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """While one worker makes something, the others wait for it. Not for Windows."""
    import fcntl

    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build_once(target: Target, main: Path, folder: Path) -> Path:
    """`build`, for all workers of a run whose folder this is."""
    folder.mkdir(exist_ok=True)
    with alone(folder / "lock"):
        program = folder / main.stem
        return program if program.exists() else build(target, main, folder)


def build(target: Target, main: Path, folder: Path) -> Path:
    """The program of `main` with all drivers and all levels. Two compilers run at once."""
    setup = setup_constants()
    common = [f for f in setup["UNIX_FLAGS"] if not f.startswith(("-O", "-g"))]
    common += ["-O1", f"-I{KERNELS}", "-Wall", "-Wextra", "-Wshadow", *target.flags]
    if os.environ.get("CI"):
        common.append("-Werror")
    jobs = [(KERNELS / "isa" / f"isa_{level}.c", flags) for level, (flags, _)
            in setup["LEVELS"][target.machine].items()]  # fmt: skip
    jobs += [(KERNELS / name, []) for name in setup["DRIVERS"]] + [(main, [])]

    def compile_one(job: tuple[Path, list[str]]) -> Path:
        source, flags = job
        out = folder / f"{source.stem}.o"
        run([target.compiler, *common, *flags, "-c", source, "-o", out])
        return out

    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        objects = list(pool.map(compile_one, jobs))
    program = folder / main.stem
    run([target.compiler, *target.flags, *target.link, "-o", program, *objects, "-lm", "-pthread"])
    return program


def link_check(objects: Path, main: Path, folder: Path) -> Path:
    """The program of `main` with the objects of a sanitized build of the extension."""
    setup = setup_constants()
    names = [Path(name).stem for name in setup["DRIVERS"]]
    found = [p for p in objects.rglob("*.o") if p.stem in names or p.stem.startswith("isa_")]
    program = folder / main.stem
    flags = ["-std=c11", f"-I{KERNELS}", "-fopenmp", *setup["SANITIZE"]]
    run(["gcc", *flags, main, *found, "-o", program, "-lm"])
    return program
