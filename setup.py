"""Extension modules and the table of ISA flags; metadata is in pyproject.toml."""

import os
import platform
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pybind11
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("src/rllama/_kernels")
DRIVERS = [
    "context.c", "cpu_features.c", "parallel.c", "pool.c", "selftest.c",
    "op_matmul.c", "op_moe.c", "op_attention.c", "op_rows.c", "dequant.c",
    "op_unpack.c", "op_quantize.c",
]  # fmt: skip
DEBUG = os.environ.get("RLLAMA_DEBUG") == "1"
# After UNIX_FLAGS and Python's own; without the last line the levels take ten times as long. The
# checks left out would double what remains; what they would find crashes, or the address sanitizer
# sees it.
SANITIZE = [
    "-fsanitize=address,undefined", "-fno-sanitize=null,object-size,pointer-overflow",
    "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1",
    "-O1", "-fno-wrapv", "-fno-var-tracking",
]  # fmt: skip

AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"]
# Levels of each architecture, in ascending order: flags of GCC and Clang, flags of MSVC.
X86 = {
    "scalar": (["-msse4.2"], []),
    "avx2": (["-mavx2", "-mfma", "-mf16c"], ["/arch:AVX2"]),
    "avx512": (AVX512, ["/arch:AVX512"]),
    "avx512vnni": ([*AVX512, "-mavx512vnni"], ["/arch:AVX512"]),
    "avx512bf16": ([*AVX512, "-mavx512vnni", "-mavx512bf16"], ["/arch:AVX512"]),
}
ARM64 = {
    "scalar": ([], []),
    "neon": (["-march=armv8-a"], []),
    "neon_dot": (["-march=armv8.2-a+dotprod"], []),
    "neon_i8mm": (["-march=armv8.2-a+dotprod+i8mm"], []),
}
LEVELS = {"x86_64": X86, "amd64": X86, "aarch64": ARM64, "arm64": ARM64}
OTHER = {"scalar": ([], [])}

# Never -ffast-math: it would change how the whole process treats subnormals. What the kernels do in
# scalars is meant to stay off the vector ports.
UNIX_FLAGS = ["-O3", "-std=c11", "-fvisibility=hidden", "-ffp-contract=off", "-fno-lto", "-g0",
              "-pthread", "-fno-tree-slp-vectorize"]  # fmt: skip
# Comparisons of floats may then be vectorised; it changes no value.
SAMPLER_FLAGS = [
    "-O3", "-std=c++17", "-fvisibility=hidden", "-ffp-contract=off", "-fno-trapping-math", "-g0",
]  # fmt: skip
MSVC_FLAGS = ["/O2", "/std:c11", "/experimental:c11atomics", "/openmp"]


def target_machine() -> str:
    """The architecture being built for; macOS and cross builds say it in ARCHFLAGS or the name."""
    flags = os.environ.get("ARCHFLAGS", "")
    for name in ("arm64", "x86_64"):
        if f"-arch {name}" in flags:
            return name
    return platform.machine().lower()


class BuildKernels(build_ext):
    """Compile every ISA stub with its own flags; a level the compiler lacks is named, not built."""

    def build_extension(self, ext: Extension) -> None:
        if ext.name == "rllama._kernels.core":
            self.add_levels(ext)
        super().build_extension(ext)

    def add_levels(self, ext: Extension) -> None:
        msvc = self.compiler.compiler_type == "msvc"
        common = MSVC_FLAGS if msvc else UNIX_FLAGS + (SANITIZE if DEBUG else [])
        openmp = self.openmp_flags(msvc)
        ext.extra_compile_args = [*common, *openmp]
        ext.extra_link_args = [] if msvc else ["-pthread", *openmp, *(SANITIZE if DEBUG else [])]
        levels = LEVELS.get(target_machine(), OTHER)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for objects in pool.map(
                lambda name: self.compile_level(name, common, levels[name][msvc]), levels
            ):
                ext.extra_objects += objects

    def compile_level(self, name: str, common: list[str], own: list[str]) -> list[str]:
        flags = [*common, *own]
        if not self.accepts(flags):
            print(f"rllama: this compiler lacks ISA level {name}", file=sys.stderr)
            flags = [*common, "-DRL_ABSENT"]
        source = str(KERNELS / "isa" / f"isa_{name}.c")
        objects: list[str] = self.compiler.compile(
            [source], output_dir=self.build_temp, extra_postargs=flags
        )
        return objects

    def openmp_flags(self, msvc: bool) -> list[str]:
        if msvc or sys.platform == "darwin" or os.environ.get("RLLAMA_OPENMP") == "0":
            return []  # macOS has libdispatch: no second OpenMP runtime in the process
        return ["-fopenmp"] if self.accepts(["-fopenmp"]) else []

    def accepts(self, flags: list[str]) -> bool:
        """Whether the compiler takes these flags, tried on an empty file."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "empty.c"
            source.write_text("typedef int nothing;\n")
            try:
                self.compiler.compile([str(source)], output_dir=folder, extra_postargs=flags)
            except Exception:
                return False
        return True


def extensions() -> list[Extension]:
    core = Extension(
        "rllama._kernels.core",
        [str(KERNELS / "core.pyx"), *(str(KERNELS / name) for name in DRIVERS)],
        include_dirs=[str(KERNELS)],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        depends=[str(p) for p in KERNELS.rglob("*") if p.suffix in (".h", ".inc", ".c")],
    )
    windows = sys.platform == "win32"
    sampler = Extension(
        "rllama.engine._sampler",
        ["src/rllama/engine/_sampler.cpp"],
        include_dirs=[pybind11.get_include(), np.get_include()],
        depends=[str(p) for p in Path("src/rllama/engine").glob("*.h")],
        language="c++",
        extra_compile_args=["/O2", "/std:c++17", "/EHsc"] if windows else SAMPLER_FLAGS,
    )
    directives = {
        "language_level": 3,
        "boundscheck": DEBUG,
        "wraparound": DEBUG,
        "cdivision": True,
        "initializedcheck": DEBUG,
        "nonecheck": True,
        "freethreading_compatible": True,
    }
    # A debug build must not leave its C where the next release build would take it for its own.
    generated = "build/debug" if DEBUG else None
    return [*cythonize([core], compiler_directives=directives, build_dir=generated), sampler]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernels})
