"""How many threads this process may really use, and why."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from rllama.cgroups import own_groups, read_text
from rllama.errors import ConfigError

MAX_THREADS = 1024


@dataclass(frozen=True, slots=True)
class ThreadPlan:
    """The default number of threads and the limits it comes from, for `inspect --cpu`.

    Units: affinity and physical count CPUs; quota counts CPUs' worth of time, None if unlimited
    """

    n_threads: int
    affinity: int
    physical: int
    quota: float | None
    omp_limit: int | None
    note: str | None = None

    @property
    def reason(self) -> str:
        parts = [f"{self.affinity} CPUs allowed", f"{self.physical} physical cores among them"]
        if self.quota is not None:
            parts.append(f"CPU quota {self.quota:g}")
        if self.omp_limit is not None:
            parts.append(f"OMP_NUM_THREADS {self.omp_limit}")
        return ", ".join(parts)


def usable_threads(root: Path = Path("/")) -> ThreadPlan:
    """Affinity and cpuset, physical cores, CPU quota, OMP_NUM_THREADS: the smallest counts."""
    cpus = _allowed_cpus()
    physical = _physical_cores(cpus, root)
    quota = _cpu_quota(root)
    omp_limit, note = _omp_limit(os.environ.get("OMP_NUM_THREADS"))
    n = physical
    if quota is not None:
        n = min(n, max(1, int(quota)))
    if omp_limit is not None:
        n = min(n, omp_limit)
    return ThreadPlan(max(1, n), len(cpus), physical, quota, omp_limit, note)


def check_threads(n_threads: int) -> int:
    """A number that a user gave. Raises ConfigError."""
    if not 1 <= n_threads <= MAX_THREADS:
        raise ConfigError(f"the number of threads must be 1 to {MAX_THREADS}, not {n_threads}")
    return n_threads


def openmp_runtimes(maps: Path = Path("/proc/self/maps")) -> list[str]:
    """Paths of the OpenMP libraries that this process has loaded; where Linux does not say, none.

    Notes:   two of them do no harm here, but each has threads of its own, and they compete
    """
    path = re.compile(r"/.*/(?:libgomp|libomp|libiomp5)[-.][^/\n]*$", re.MULTILINE)
    return sorted(set(path.findall(read_text(maps))))


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _physical_cores(cpus: set[int], root: Path) -> int:
    """Distinct cores among the CPUs: hardware threads of one core count once."""
    cores = set()
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        siblings = read_text(topology / "thread_siblings_list")
        cores.add(siblings if siblings else f"cpu{cpu}")
    return max(1, len(cores))


def _cpu_quota(root: Path) -> float | None:
    """The tightest CPU quota of this process's control groups, v2 or v1."""
    groups = own_groups("cpu", root / "proc", root / "sys/fs/cgroup")
    quotas = [q for _, folder in groups if (q := _folder_quota(folder)) is not None]
    return min(quotas) if quotas else None


def _folder_quota(folder: Path) -> float | None:
    both = read_text(folder / "cpu.max")
    if both:
        fields = both.split()
        if len(fields) == 2 and fields[0] != "max":
            return _ratio(fields[0], fields[1])
        return None
    quota, period = read_text(folder / "cpu.cfs_quota_us"), read_text(folder / "cpu.cfs_period_us")
    return _ratio(quota, period) if quota and period else None


def _ratio(quota: str, period: str) -> float | None:
    try:
        q, p = int(quota), int(period)
    except ValueError:
        return None
    return q / p if q > 0 and p > 0 else None


def _omp_limit(value: str | None) -> tuple[int | None, str | None]:
    """OMP_NUM_THREADS, where it makes sense; else a note that it was ignored."""
    if value is None or not value.strip():
        return None, None
    first = value.split(",")[0].strip()
    digits = first.isascii() and first.isdigit() and len(first) <= 7
    if not digits or not 1 <= int(first) <= 10**6:
        return None, f"OMP_NUM_THREADS={value!r} is not a number of threads; ignored"
    return int(first), None
