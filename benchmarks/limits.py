"""The physical limits of this machine, measured by `peaks.c`: bandwidth and peak dot products."""

from __future__ import annotations

import ctypes
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).resolve().parent / "peaks.c"
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_READ_AT_LEAST = 1 << 28  # bytes per measurement; small working sets are read several times
# (streams per thread, bytes of prefetch distance): which is best differs by machine and hour.
_READ_WAYS = ((1, 0), (1, 4096), (4, 4096))


@dataclass(frozen=True, slots=True)
class Limits:
    """Rates of all threads together.

    Units: read in bytes/s; int8, bf16, f32 in multiplications plus additions/s, 0 where the CPU
           lacks the instruction
    """

    read: float
    int8: float
    bf16: float
    f32: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def peak_for(self, type_name: str) -> float:
        """The peak of the dot product that a weight type runs on."""
        if type_name in ("F32", "F16"):
            return self.f32
        if type_name == "BF16":
            return self.bf16 or self.f32
        return self.int8


class Peaks:
    """The compiled measuring functions and the memory that they read. Close it after use."""

    def __init__(self, n_threads: int, *, memory_bytes: int = 1 << 30) -> None:
        self.n_threads = n_threads
        self._folder = tempfile.TemporaryDirectory(prefix="rllama-peaks-")
        self._lib = _load(Path(self._folder.name))
        self._n_bytes = memory_bytes
        self._memory = self._lib.memory_new(memory_bytes, n_threads)
        if not self._memory:
            raise MemoryError(f"no {memory_bytes / 1e9:.1f} GB of memory to read")
        self._read(_READ_WAYS[0], memory_bytes)

    @property
    def int8_name(self) -> str:
        return str(self._lib.int8_name().decode())

    def _read(self, way: tuple[int, int], n_bytes: int) -> float:
        n_times = max(1, _READ_AT_LEAST // n_bytes)
        return float(self._lib.read_rate(self._memory, n_bytes, n_times, self.n_threads, *way))

    def read_rates(self, *, passes: int = 3, working_set: int | None = None) -> list[float]:
        """Bytes per second of some passes, each the best of several ways to read.

        Notes: a working set that fits a cache is read from there, as a model of that size is
        """
        n_bytes = min(self._n_bytes, working_set or self._n_bytes)
        return [max(self._read(way, n_bytes) for way in _READ_WAYS) for _ in range(passes)]

    def peak(self, name: str, *, run_s: float = 0.05, repeats: int = 3) -> float:
        """Best rate of a few runs of the peak `int8`, `bf16` or `f32`; 0 where it is missing."""
        function = getattr(self._lib, f"peak_{name}")
        n_rounds = 100_000
        start = time.perf_counter()
        if function(self.n_threads, n_rounds) == 0:
            return 0.0
        n_rounds = max(1, int(n_rounds * run_s / (time.perf_counter() - start)))
        return max(float(function(self.n_threads, n_rounds)) for _ in range(repeats))

    def measure(self, *, passes: int = 3, working_set: int | None = None) -> Limits:
        """All limits, in about half a second."""
        return Limits(
            statistics.median(self.read_rates(passes=passes, working_set=working_set)),
            *(self.peak(name) for name in ("int8", "bf16", "f32")),
        )

    def close(self) -> None:
        if self._memory:
            self._lib.memory_free(self._memory)
            self._memory = None
        self._folder.cleanup()


def _load(folder: Path) -> Any:
    """Compile and open `peaks.c`. Raises RuntimeError with the compiler's words."""
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler.split()[0]) is None:
        raise RuntimeError(f"no C compiler {compiler!r}; set CC")
    library = folder / "peaks.so"
    command = [*compiler.split(), *_FLAGS, str(_SOURCE), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    lib = ctypes.CDLL(str(library))
    lib.memory_new.restype = ctypes.c_void_p
    lib.memory_new.argtypes = [ctypes.c_int64, ctypes.c_int]
    lib.memory_free.argtypes = [ctypes.c_void_p]
    lib.int8_name.restype = ctypes.c_char_p
    lib.read_rate.restype = ctypes.c_double
    lib.read_rate.argtypes = [
        ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int, ctypes.c_int,
        ctypes.c_int64,
    ]  # fmt: skip
    for name in ("int8", "bf16", "f32"):
        function = getattr(lib, f"peak_{name}")
        function.restype = ctypes.c_double
        function.argtypes = [ctypes.c_int, ctypes.c_int64]
    return lib
