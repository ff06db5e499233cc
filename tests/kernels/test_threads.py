"""The number of threads, out of fake control groups, CPUs and variables."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rllama.errors import ConfigError
from rllama.threads import MAX_THREADS, check_threads, openmp_runtimes, usable_threads


class Machine:
    """A fake root folder with CPUs and control groups."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self._patch = monkeypatch
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        self.cpus(4)

    def cpus(self, n: int, *, allowed: set[int] | None = None, threads_per_core: int = 1) -> None:
        """CPUs 0..n-1; hardware threads of core c are c, c + cores, c + 2 * cores ..."""
        cores = n // threads_per_core
        for cpu in range(n):
            siblings = ",".join(str(cpu % cores + i * cores) for i in range(threads_per_core))
            self.write(f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", siblings)
        chosen = set(range(n)) if allowed is None else allowed
        self._patch.setattr(os, "sched_getaffinity", lambda _: chosen, raising=False)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def omp(self, value: str) -> None:
        self._patch.setenv("OMP_NUM_THREADS", value)

    @property
    def n_threads(self) -> int:
        return usable_threads(self.root).n_threads


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_threads_all_cores_without_limits(machine: Machine) -> None:
    plan = usable_threads(machine.root)
    assert (plan.n_threads, plan.affinity, plan.physical) == (4, 4, 4)
    assert (plan.quota, plan.omp_limit, plan.note) == (None, None, None)
    assert plan.reason == "4 CPUs allowed, 4 physical cores among them"


def test_threads_hardware_threads_of_a_core_count_once(machine: Machine) -> None:
    machine.cpus(16, threads_per_core=2)
    assert machine.n_threads == 8
    machine.cpus(16, threads_per_core=2, allowed={0, 8, 1})
    assert machine.n_threads == 2
    machine.cpus(16, threads_per_core=2, allowed={3, 12})
    assert machine.n_threads == 2


def test_threads_affinity_counts(machine: Machine) -> None:
    machine.cpus(16, allowed={0, 1, 2, 3})
    assert machine.n_threads == 4


def test_threads_without_topology_every_cpu_counts(tmp_path: Path, machine: Machine) -> None:
    assert usable_threads(tmp_path / "nothing here").n_threads == 4


@pytest.mark.parametrize(
    ("limit", "n_threads"),
    [
        ("50000 100000", 1),
        ("200000 100000", 2),
        ("250000 100000", 2),
        ("399999 100000", 3),
        ("1600000 100000", 16),
        ("6400000 100000", 16),
        ("max 100000", 16),
        ("1000 1000000", 1),
        ("", 16),
        ("garbage", 16),
        ("many 100000", 16),
        ("-1 100000", 16),
        ("200000 0", 16),
        ("1 2 3", 16),
    ],
)
def test_threads_quota_v2(machine: Machine, limit: str, n_threads: int) -> None:
    machine.cpus(16)
    machine.write("proc/self/cgroup", "0::/")
    machine.write("sys/fs/cgroup/cpu.max", limit)
    assert machine.n_threads == n_threads


@pytest.mark.parametrize(
    ("quota", "period", "n_threads"),
    [("50000", "100000", 1), ("200000", "100000", 2), ("-1", "100000", 16), ("x", "y", 16)],
)
def test_threads_quota_v1(machine: Machine, quota: str, period: str, n_threads: int) -> None:
    machine.cpus(16)
    machine.write("proc/self/cgroup", "5:memory:/box\n4:cpu,cpuacct:/box\n1:name=systemd:/box")
    machine.write("sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", quota)
    machine.write("sys/fs/cgroup/cpu/box/cpu.cfs_period_us", period)
    machine.write("sys/fs/cgroup/memory/box/cpu.cfs_quota_us", "1")
    assert machine.n_threads == n_threads


def test_threads_nested_groups_v2_the_tightest_counts(machine: Machine) -> None:
    machine.cpus(16)
    machine.write("proc/self/cgroup", "0::/outer/inner")
    machine.write("sys/fs/cgroup/outer/inner/cpu.max", "800000 100000")
    assert machine.n_threads == 8
    machine.write("sys/fs/cgroup/outer/cpu.max", "300000 100000")
    assert machine.n_threads == 3
    machine.write("sys/fs/cgroup/outer/inner/cpu.max", "max 100000")
    assert machine.n_threads == 3


def test_threads_nested_groups_v1_the_tightest_counts(machine: Machine) -> None:
    machine.cpus(16)
    machine.write("proc/self/cgroup", "4:cpu,cpuacct:/outer/inner")
    for group, quota in (("", "1200000"), ("outer/", "500000"), ("outer/inner/", "-1")):
        machine.write(f"sys/fs/cgroup/cpu/{group}cpu.cfs_quota_us", quota)
        machine.write(f"sys/fs/cgroup/cpu/{group}cpu.cfs_period_us", "100000")
    assert machine.n_threads == 5


def test_threads_group_path_of_the_host_inside_a_container(machine: Machine) -> None:
    """The path is the host's, the mounted tree begins at the container's own group."""
    machine.cpus(16)
    machine.write("proc/self/cgroup", "4:cpu,cpuacct:/docker/0123abcd")
    machine.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "150000")
    machine.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    assert machine.n_threads == 1
    machine.write("proc/self/cgroup", "0::/../../elsewhere")
    machine.write("sys/fs/cgroup/cpu.max", "700000 100000")
    assert machine.n_threads == 7


def test_threads_quota_and_affinity_the_smaller_counts(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/")
    machine.write("sys/fs/cgroup/cpu.max", "800000 100000")
    machine.cpus(16, allowed={0, 1, 2})
    assert machine.n_threads == 3
    machine.cpus(16)
    assert machine.n_threads == 8
    plan = usable_threads(machine.root)
    assert plan.quota == 8.0
    assert plan.reason == "16 CPUs allowed, 16 physical cores among them, CPU quota 8"


@pytest.mark.parametrize(
    "value",
    ["0", "-3", "abc", "1.5", "٣", "²", "9" * 30, pytest.param("1" * 5000, id="long"), ",2"],
)
def test_threads_omp_variable_without_sense_is_noted(machine: Machine, value: str) -> None:
    machine.omp(value)
    plan = usable_threads(machine.root)
    assert (plan.n_threads, plan.omp_limit) == (4, None)
    assert plan.note == f"OMP_NUM_THREADS={value!r} is not a number of threads; ignored"


@pytest.mark.parametrize(
    ("value", "n_threads"),
    [("1", 1), ("3", 3), (" 2 ", 2), ("2,4", 2), ("4,2", 4), ("100000", 4), ("", 4), (" ", 4)],
)
def test_threads_omp_variable_limits(machine: Machine, value: str, n_threads: int) -> None:
    machine.omp(value)
    plan = usable_threads(machine.root)
    assert (plan.n_threads, plan.note) == (n_threads, None)


def test_threads_reason_names_the_omp_variable(machine: Machine) -> None:
    machine.omp("2")
    assert usable_threads(machine.root).reason.endswith(", OMP_NUM_THREADS 2")


def test_threads_unreadable_files_are_no_limit(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/box\nnonsense\n0:x")
    path = machine.root / "sys/fs/cgroup/box/cpu.max"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\xfe\x00")
    assert machine.n_threads == 4


@pytest.mark.parametrize("n", [1, 2, MAX_THREADS])
def test_check_threads_gives_back_what_is_right(n: int) -> None:
    assert check_threads(n) == n


@pytest.mark.parametrize("n", [0, -1, MAX_THREADS + 1])
def test_check_threads_refuses(n: int) -> None:
    with pytest.raises(ConfigError, match=f"must be 1 to {MAX_THREADS}, not {n}"):
        check_threads(n)


def test_threads_of_this_machine_is_at_least_one() -> None:
    assert usable_threads().n_threads >= 1


def test_openmp_runtimes_are_named_once(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    lib, wheel = "/usr/lib/libgomp.so.1.0.0", "/venv/my libs/libgomp-a34b3233.so.1"
    maps.write_text(
        f"7f00-7f10 r--p 00000000 fe:01 12   {lib}\n7f10-7f20 r-xp 00010000 fe:01 12   {lib}\n"
        f"7f20-7f30 rw-p 00000000 00:00 0 \n7f30-7f40 r--p 00000000 fe:01 13   {wheel}\n"
        "7f40-7f50 r--p 00000000 fe:01 14   /usr/lib/libgompertz.txt\n"
        "7f50-7f60 rw-p 00000000 00:00 0   [heap]\n"
    )
    assert openmp_runtimes(maps) == sorted([lib, wheel])
    assert openmp_runtimes(tmp_path / "absent") == []
