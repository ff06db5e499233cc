"""What a process may take, and the plan that is made from it."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from formats.writers import tiny_config

from rllama import memory
from rllama._kernels import core
from rllama.config import EngineConfig, ModelConfig
from rllama.engine.limits import context_and_cache
from rllama.errors import ConfigError, MemoryPlanError
from rllama.memory import Available, MemoryPlan, plan_memory

GB = 1 << 30


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Path, Path]:
    """A made-up /proc and /sys/fs/cgroup with 8 GB free."""
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    cgroups.mkdir()
    (proc / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {8 * GB // 1024} kB\n")
    (proc / "self" / "cgroup").write_text("0::/\n")
    return proc, cgroups


def test_available_is_the_free_memory_without_limits(machine: tuple[Path, Path]) -> None:
    found = memory.available_memory(*machine)
    assert found.n_bytes == 8 * GB
    assert "free memory" in found.limit


def test_available_cgroup_v2_counts_page_cache_as_free(machine: tuple[Path, Path]) -> None:
    proc, cgroups = machine
    (proc / "self" / "cgroup").write_text("0::/a/b\n")
    (cgroups / "a" / "b").mkdir(parents=True)
    (cgroups / "a" / "memory.max").write_text(f"{4 * GB}\n")
    (cgroups / "a" / "memory.current").write_text(f"{3 * GB}\n")
    (cgroups / "a" / "memory.stat").write_text(f"anon {GB}\nfile {2 * GB}\n")
    (cgroups / "a" / "b" / "memory.max").write_text("max\n")
    found = memory.available_memory(proc, cgroups)
    assert found.n_bytes == 3 * GB
    assert str(cgroups / "a") in found.limit


def test_available_cgroup_v1_has_a_tree_of_its_own(machine: tuple[Path, Path]) -> None:
    proc, cgroups = machine
    (proc / "self" / "cgroup").write_text("4:cpu,memory:/box\n0::/\n")
    box = cgroups / "memory" / "box"
    box.mkdir(parents=True)
    (box / "memory.limit_in_bytes").write_text(f"{2 * GB}\n")
    (box / "memory.usage_in_bytes").write_text(f"{GB}\n")
    (cgroups / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory.available_memory(proc, cgroups).n_bytes == GB


def test_available_container_path_is_not_below_the_mount(machine: tuple[Path, Path]) -> None:
    proc, cgroups = machine
    (proc / "self" / "cgroup").write_text("0::/docker/0123\n")
    (cgroups / "memory.max").write_text(f"{GB}\n")
    assert memory.available_memory(proc, cgroups).n_bytes == GB


def test_available_address_space_limit(
    machine: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    proc, cgroups = machine
    (proc / "self" / "statm").write_text("100 50 20 1 0 30 0\n")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (GB, GB))
    found = memory.available_memory(proc, cgroups)
    assert found.n_bytes == GB - 100 * os.sysconf("SC_PAGE_SIZE")
    assert "ulimit -v" in found.limit


def test_address_space_counts_whole_files_and_leaves_some(
    machine: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 4 GB, 1 GB is in use, half of it weights that the plan counts."""
    proc = machine[0]
    used = GB // os.sysconf("SC_PAGE_SIZE")
    (proc / "self" / "statm").write_text(f"{used} 50 20 1 0 30 0\n")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (4 * GB, 4 * GB))
    found = memory.once_mapped(Available(8 * GB, "more"), GB // 2, proc)
    assert found.n_bytes == 3 * GB + GB // 2 - (192 << 20)
    assert "ulimit -v" in found.limit
    assert memory.once_mapped(Available(GB, "less"), GB // 2, proc) == Available(GB, "less")


def test_address_space_without_a_limit_changes_nothing(
    machine: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: unlimited)
    assert memory.once_mapped(Available(GB, "a"), GB, machine[0]) == Available(GB, "a")


def test_anonymous_memory_leaves_file_pages_out(machine: tuple[Path, Path]) -> None:
    (machine[0] / "self" / "statm").write_text("100 50 20 1 0 30 0\n")
    assert memory.anonymous_bytes(machine[0]) == 30 * os.sysconf("SC_PAGE_SIZE")
    assert memory.anonymous_bytes(machine[1]) is None


def test_anonymous_memory_of_this_process_grows_with_what_it_takes() -> None:
    before = memory.anonymous_bytes()
    taken = bytearray(os.urandom(1)) * (64 << 20)
    after = memory.anonymous_bytes()
    assert before is not None
    assert after is not None
    assert after - before > 48 << 20
    assert len(taken) == 64 << 20


CFG = tiny_config(max_seq_len=1000)
# 2 layers * 2 heads * 8 wide keys and as wide values, padded to 16 * 64 positions * 4 bytes
PAGE_BYTES = 2 * 2 * (8 + 16) * 64 * 4


def plan(
    n_bytes: int = GB, cfg: ModelConfig = CFG, weights_bytes: int = 1 << 20, **engine: int
) -> MemoryPlan:
    return plan_memory(
        cfg,
        EngineConfig(**engine),  # type: ignore[arg-type]
        weights_bytes=weights_bytes,
        kv_dtype="f32",
        available=Available(n_bytes, "a test"),
    )


def test_plan_gives_the_trained_context_and_eight_of_them() -> None:
    made = plan()
    assert made.page_bytes == PAGE_BYTES
    assert made.max_seq_len == 1000
    assert made.n_pages == 8 * 16


def test_plan_f16_cache_takes_half() -> None:
    halved = plan_memory(
        CFG, EngineConfig(), weights_bytes=0, kv_dtype="f16", available=Available(GB, "a test")
    )
    assert halved.page_bytes == PAGE_BYTES // 2


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("head_dim", [8, 34, 64, 80, 128])
def test_plan_page_is_what_the_cache_takes(
    head_dim: int, kv_dtype: Literal["f32", "f16", "q8_0"]
) -> None:
    cfg = replace(CFG, head_dim=head_dim)
    made = plan_memory(
        cfg, EngineConfig(), weights_bytes=0, kv_dtype=kv_dtype, available=Available(GB, "a test")
    )
    groups = [(tuple(range(cfg.n_layers)), 3)]
    store = core.KVStore(groups, cfg.n_kv_heads, head_dim, kv_dtype)
    assert store.n_bytes == 3 * made.page_bytes
    store.close()


def test_plan_asked_context_is_kept() -> None:
    assert plan(max_seq_len=100).max_seq_len == 100
    assert plan(max_seq_len=100).n_pages == 8 * 2


def test_plan_default_context_shrinks_to_what_fits() -> None:
    work = plan().work_bytes
    room = 5 * (PAGE_BYTES + 64 * CFG.head_dim * 4)
    made = plan((1 << 20) + work + room)
    assert made.max_seq_len == 5 * 64
    assert made.n_pages >= 5


def test_plan_asked_context_that_does_not_fit_says_need_have_and_what_would() -> None:
    work = plan().work_bytes
    room = 5 * (PAGE_BYTES + 64 * CFG.head_dim * 4)
    wanted = r"needed \(weights 1\.0 MB.*there \(a test\).*--max-seq-len\) of 320 would fit"
    with pytest.raises(MemoryPlanError, match=wanted):
        plan((1 << 20) + work + room, max_seq_len=1000)


def test_plan_weights_that_do_not_fit_name_the_remedy() -> None:
    with pytest.raises(MemoryPlanError, match=r"30\.00 GB.*1\.07 GB there.*smaller or more"):
        plan(weights_bytes=30 * 10**9)


def test_plan_huge_trained_context_is_no_reason_to_fail() -> None:
    made = plan(cfg=replace(CFG, max_seq_len=2**31 - 1))
    assert 64 <= made.max_seq_len < 2**31 - 1
    assert made.n_pages * made.page_bytes < GB


def test_plan_context_beyond_training_is_a_wrong_option() -> None:
    with pytest.raises(ConfigError, match="1001 is beyond the 1000 positions"):
        plan(max_seq_len=1001)


def test_plan_asked_pages_bound_the_context() -> None:
    made = plan(n_pages=3)
    assert (made.n_pages, made.max_seq_len) == (3, 192)
    with pytest.raises(ConfigError, match="max_seq_len 500 does not fit into the 192 positions"):
        plan(n_pages=3, max_seq_len=500)
    with pytest.raises(MemoryPlanError, match="cache of 2000000 pages"):
        plan(n_pages=2_000_000)


# Gemma-like: five layers with a window for one that sees everything, and 32k positions.
WINDOWED = tiny_config(max_seq_len=32768, n_layers=6, windows=(1024,) * 5 + (0,))


def test_plan_window_costs_what_it_holds() -> None:
    """One context: 512 pages in one layer, a window and a step of 512 tokens in the others."""
    page = PAGE_BYTES // 2  # of one layer
    made = plan(cfg=WINDOWED, max_seq_len=32768, n_pages=512)
    one_window = (1024 + 62) // 64 + 1 + 512 // 64
    assert made.cache_bytes == page * (512 + 5 * one_window)
    assert made.page_bytes == 6 * page


def test_plan_window_of_all_sequences_in_a_larger_cache() -> None:
    made = plan(10 * GB, cfg=WINDOWED, max_seq_len=32768, max_seqs=3)
    windows = 3 * ((1024 + 62) // 64 + 1) + 512 // 64
    assert made.n_pages == 8 * 512
    assert made.cache_bytes == PAGE_BYTES // 2 * (8 * 512 + 5 * windows)


def test_plan_window_lets_a_longer_context_fit() -> None:
    everything = replace(WINDOWED, windows=())
    need = plan(cfg=WINDOWED, max_seq_len=32768, n_pages=512).cache_bytes
    n_bytes = (1 << 20) + plan().work_bytes + need + 32768 * CFG.head_dim * 4 + (1 << 20)
    assert plan(n_bytes, cfg=WINDOWED).max_seq_len == 32768
    assert plan(n_bytes, cfg=everything).max_seq_len < 32768 // 3


def test_plan_short_context_does_not_notice_a_wide_window() -> None:
    short = replace(CFG, windows=(4096, 4096))
    assert plan(cfg=short) == plan()


@pytest.mark.parametrize(
    "engine",
    [{}, {"max_seq_len": 5000}, {"n_pages": 79, "max_seq_len": 5000}, {"n_pages": 80},
     {"max_seqs": 2, "max_batch_tokens": 10}],
    ids=str,
)  # fmt: skip
def test_plan_and_engine_agree_on_the_cache(engine: dict[str, int]) -> None:
    made = plan(cfg=WINDOWED, **engine)
    settled = EngineConfig(**engine | {"n_pages": made.n_pages, "max_seq_len": made.max_seq_len})
    max_seq_len, spec = context_and_cache(settled, WINDOWED)
    assert max_seq_len == made.max_seq_len
    n_pages = sum(len(group.layers) * group.n_pages for group in spec.groups)
    assert made.cache_bytes == n_pages * PAGE_BYTES // 2
