"""The choice of an ISA level and of the number of threads, and the registries' agreement."""

from __future__ import annotations

import platform

import numpy as np
import pytest
from kernels.cases import LEVELS, Case, assert_within, matmul, random_weight, random_x

from rllama import cpu
from rllama._kernels import core
from rllama.backend import get_backend
from rllama.cpu import CpuBackend
from rllama.dtypes import DTYPES
from rllama.errors import ConfigError, UnsupportedError
from rllama.threads import MAX_THREADS, usable_threads

X86 = ["scalar", "avx2", "avx512", "avx512vnni", "avx512bf16"]
ARM64 = ["scalar", "neon", "neon_dot", "neon_i8mm"]
KNOWN = {"x86_64": X86, "amd64": X86, "aarch64": ARM64, "arm64": ARM64}


@pytest.fixture(autouse=True)
def _no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLLAMA_ISA", raising=False)


def test_dispatch_lists_the_levels_of_this_architecture() -> None:
    names = [name for name, _, _ in core.isa_levels()]
    assert names == KNOWN.get(platform.machine().lower(), ["scalar"])
    assert all(compiled or not usable for _, compiled, usable in core.isa_levels())


def test_dispatch_levels_stand_on_those_below() -> None:
    """A CPU that has a level has the one below; the scalar one runs everywhere."""
    usable = [usable for _, compiled, usable in core.isa_levels() if compiled]
    assert usable[0]
    assert usable == sorted(usable, reverse=True)


def test_dispatch_takes_the_best_by_default() -> None:
    assert CpuBackend(n_threads=1).isa == LEVELS[-1]


def test_dispatch_empty_variable_means_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLLAMA_ISA", "")
    assert CpuBackend(n_threads=1).isa == LEVELS[-1]


def test_dispatch_forced_level_is_the_one_that_runs(isa: str) -> None:
    assert CpuBackend(isa, 1).isa == isa


def test_dispatch_variable_forces_and_argument_wins(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLLAMA_ISA", isa)
    assert CpuBackend(n_threads=1).isa == isa
    assert CpuBackend("scalar", 1).isa == "scalar"


@pytest.mark.parametrize("name", ["avx1024", "AVX2", "scalar ", "scalar\0", "é"])
def test_dispatch_unknown_level_names_those_that_are_usable(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable = ", ".join(LEVELS)
    with pytest.raises(ConfigError, match=f"unknown ISA level .*; usable here: {usable}"):
        CpuBackend(name, 1)
    if "\0" not in name:
        monkeypatch.setenv("RLLAMA_ISA", name)
        with pytest.raises(ConfigError, match=f"unknown ISA level .*; usable here: {usable}"):
            CpuBackend(n_threads=1)


def test_dispatch_level_that_cannot_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = [("scalar", True, True), ("avx2", True, False), ("avx512", False, False)]
    monkeypatch.setattr(core, "isa_levels", lambda: levels)
    with pytest.raises(ConfigError, match="this CPU cannot run ISA level 'avx2'; usable here: sca"):
        CpuBackend("avx2", 1)
    with pytest.raises(ConfigError, match="ISA level 'avx512' is not in this build; usable here"):
        CpuBackend("avx512", 1)


def test_dispatch_two_levels_run_side_by_side() -> None:
    case, x = random_weight("Q4_0", 33, 96, seed=1), random_x(3, 96, seed=2)
    backends = [CpuBackend(name, 1) for name in LEVELS]
    outs = [matmul(be, x, case.weight)[0] for be in backends]
    for out in outs[1:]:
        assert_within(out, outs[0].astype(np.float64), np.full_like(out, 1e-4), "levels")


@pytest.mark.parametrize("n", [0, -1, MAX_THREADS + 1])
def test_dispatch_refuses_a_number_of_threads(n: int) -> None:
    with pytest.raises(ConfigError, match=f"must be 1 to {MAX_THREADS}, not {n}"):
        CpuBackend(n_threads=n)
    if n < 1:
        with pytest.raises(ConfigError, match=f"at least 1, not {n}"):
            core.Context(n_threads=n)


def test_dispatch_default_number_of_threads_is_the_plan() -> None:
    assert CpuBackend().n_threads == usable_threads().n_threads
    assert CpuBackend(n_threads=3).n_threads == 3


def test_dispatch_backend_by_name() -> None:
    assert get_backend("cpu", isa="scalar", n_threads=1).isa == "scalar"
    with pytest.raises(UnsupportedError, match="unknown backend 'tpu'; known: cpu"):
        get_backend("tpu")


def test_registry_kernels_and_dtypes_agree() -> None:
    assert core.formats() == [(d.name, d.block_len, d.block_bytes) for d in DTYPES]


def test_registry_difference_stops_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "formats", lambda: [("F32", 1, 4)])
    with pytest.raises(ImportError, match="compiled kernels are of another version"):
        cpu._check_registries()


def test_registry_weight_knows_its_own() -> None:
    case: Case = random_weight("Q8_0", 3, 64, seed=3)
    weight = case.weight
    assert (weight.format_name, weight.shape, weight.n_bytes) == ("Q8_0", (3, 64), 3 * 68)
    assert weight.origin == "test"


def test_parallel_kind_is_known() -> None:
    assert core.parallel_kind() in {"POSIX threads", "OpenMP", "libdispatch", "serial"}
