"""Memory: what this process may take, what it has taken, and the plan made before loading."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rllama.cgroups import own_groups, read_text
from rllama.config import EngineConfig, ModelConfig
from rllama.errors import ConfigError, MemoryPlanError
from rllama.kv_groups import kv_groups

_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number just below 2^63
_POOL_CONTEXTS = 8  # full contexts that the default cache holds at most
# Address space that is left alone: stacks, arenas of malloc, modules imported later, scratch.
_SPARE_BYTES = 192 << 20


@dataclass(frozen=True, slots=True)
class Available:
    """Memory that this process may still take, and what sets the bound.

    Units: bytes
    """

    n_bytes: int
    limit: str


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a model will take once it runs, settled before anything is allocated.

    Units:   bytes; max_seq_len in positions
    Notes:   page_bytes is a page in every layer; n_pages is the size of layers that see everything,
             cache_bytes counts the smaller parts of those with a window; the cache is touched page
             by page, so a pool costs nothing until it is used
    """

    weights_bytes: int
    work_bytes: int
    page_bytes: int
    n_pages: int
    cache_bytes: int
    max_seq_len: int
    available: Available


def plan_memory(
    config: ModelConfig,
    engine: EngineConfig,
    *,
    weights_bytes: int,
    kv_dtype: Literal["f32", "f16", "q8_0"],
    available: Available,
) -> MemoryPlan:
    """Choose context and cache so that they fit, or say by how much they do not.

    Notes:   max_seq_len 0: the smaller of the trained length and what fits; n_pages 0: room for
             up to 8 contexts within a quarter of the memory, at least for one
    Raises:  MemoryPlanError, ConfigError
    """
    _check_context(config, engine)
    page_len = engine.page_len
    work = _work_bytes(config, engine)
    per_page = _page_bytes(config, page_len, kv_dtype)

    def cache_bytes(n_pages: int, max_seq_len: int) -> int:
        groups = kv_groups(config, engine, n_pages=n_pages, max_seq_len=max_seq_len)
        return sum(len(g.layers) * g.n_pages for g in groups) * per_page // config.n_layers

    def context_bytes(n_pages: int) -> int:
        """One context, which also has its rows of the tables of rotations."""
        n_tables = 1 if config.local_rope_theta is None else 2
        n_positions = n_pages * page_len
        return cache_bytes(n_pages, n_positions) + n_tables * n_positions * config.head_dim * 4

    room = available.n_bytes - weights_bytes - work
    asked = engine.max_seq_len or config.max_seq_len
    fits = page_len * _most(_pages(asked, page_len), lambda n: context_bytes(n) <= room)
    if fits < (asked if engine.max_seq_len else min(asked, page_len)):
        cache = context_bytes(_pages(asked, page_len))
        raise MemoryPlanError(
            f"not enough memory: {_gb(weights_bytes + work + cache)} needed (weights "
            f"{_gb(weights_bytes)}, cache of {asked} positions {_gb(cache)}, work {_gb(work)}), "
            f"{_gb(available.n_bytes)} there ({available.limit}); {_advice(fits)}"
        )
    max_seq_len = min(asked, fits)
    if engine.n_pages:
        fits = _most(engine.n_pages, lambda n: cache_bytes(n, max_seq_len) <= room)
        n_pages, max_seq_len = _asked_pages(engine, max_seq_len, fits)
    else:
        one, quarter = _pages(max_seq_len, page_len), available.n_bytes // 4
        n_pages = _most(_POOL_CONTEXTS * one, lambda n: cache_bytes(n, max_seq_len) <= quarter)
        n_pages = max(one, n_pages)
    cache = cache_bytes(n_pages, max_seq_len)
    return MemoryPlan(weights_bytes, work, per_page, n_pages, cache, max_seq_len, available)


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to the limit that fits, where all below one that fits do; or 0."""
    low, high = 0, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def _check_context(config: ModelConfig, engine: EngineConfig) -> None:
    if engine.max_seq_len > config.max_seq_len:
        raise ConfigError(
            f"max_seq_len {engine.max_seq_len} is beyond the {config.max_seq_len} positions that "
            "this model was trained for"
        )


def _asked_pages(engine: EngineConfig, max_seq_len: int, fits: int) -> tuple[int, int]:
    if engine.n_pages > fits:
        raise MemoryPlanError(
            f"not enough memory for a cache of {engine.n_pages} pages; {fits} would fit"
        )
    held = engine.n_pages * engine.page_len
    if engine.max_seq_len > held:
        raise ConfigError(
            f"max_seq_len {engine.max_seq_len} does not fit into the {held} positions of "
            f"{engine.n_pages} pages"
        )
    return engine.n_pages, min(max_seq_len, held)


def _advice(fits: int) -> str:
    if fits > 0:
        return f"a max_seq_len (--max-seq-len) of {fits} would fit"
    return "no max_seq_len would fit: take a smaller or more strongly quantised model"


def _pages(n_positions: int, page_len: int) -> int:
    return -(-n_positions // page_len)


def _page_bytes(config: ModelConfig, page_len: int, kv_dtype: Literal["f32", "f16", "q8_0"]) -> int:
    """A page in every layer; values are padded to 16 columns, q8_0 has 2 bytes per 32 numbers."""
    width = {"f32": 4, "f16": 2, "q8_0": 1}[kv_dtype]
    scales = 2 * -(-config.head_dim // 32) if kv_dtype == "q8_0" else 0
    key, value = config.head_dim * width, -(-config.head_dim // 16) * 16 * width
    return config.n_layers * config.n_kv_heads * page_len * (key + value + 2 * scales)


def _work_bytes(config: ModelConfig, engine: EngineConfig) -> int:
    """Activations of one step, their quantised copy, and the logits of every sequence."""
    q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    per_token = 4 * (2 * config.dim + max(2 * q_dim + 2 * kv_dim, 2 * config.ffn_dim))
    quantised = 2 * max(config.dim, q_dim, config.ffn_dim)
    logits = 4 * config.vocab_size * engine.max_seqs
    per_pair = 4 * (2 * config.dim + 2 * config.expert_ffn_dim) if config.n_experts else 0
    n_pairs = max(256, engine.max_batch_tokens)  # SLICE_PAIRS of _kernels/op_moe.c
    return engine.max_batch_tokens * (per_token + quantised) + n_pairs * per_pair + logits


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"


def available_memory(
    proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> Available:
    """The smallest of: free memory of the machine, of every cgroup above us, of our rlimit.

    Notes: files in the page cache count as free, for the kernel drops them on demand
    """
    limits = (_machine_memory(proc), *_cgroup_limits(proc, cgroups), *_address_space(proc))
    return min(limits, key=lambda found: found.n_bytes)


def once_mapped(before: Available, mapped_bytes: int, proc: Path = Path("/proc")) -> Available:
    """What was available before files were opened, or what an address space limit leaves of it.

    Units:   bytes; mapped_bytes are of weights, which the plan counts
    Notes:   such a limit counts whole files and every page of a cache, touched or not; so it is
             read when they are mapped, and some is left for what is no part of the plan
    """
    limits = [before]
    for found in _address_space(proc):
        spare = min(_SPARE_BYTES, found.n_bytes // 2)
        limits.append(Available(found.n_bytes - spare + mapped_bytes, found.limit))
    return min(limits, key=lambda found: found.n_bytes)


def anonymous_bytes(proc: Path = Path("/proc")) -> int | None:
    """Memory of this process that is no file's; None where the system does not tell."""
    fields = read_text(proc / "self" / "statm").split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") if fields else None


def _machine_memory(proc: Path) -> Available:
    for line in read_text(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return Available(int(line.split()[1]) * 1024, "free memory of this machine")
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return Available(_UNLIMITED, "unknown memory of this machine")
    return Available(total, "memory of this machine")


# Limit, use, and the part of it that is cache and can be dropped, by version.
_CGROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
    2: ("memory.max", "memory.current", "file"),
}


def _cgroup_limits(proc: Path, cgroups: Path) -> Iterator[Available]:
    for version, folder in own_groups("memory", proc, cgroups):
        limit, usage, cache = _CGROUP_FILES[version]
        most = _number(read_text(folder / limit))
        if most is not None and most < _UNLIMITED:
            used = (_number(read_text(folder / usage)) or 0) - _stat(folder / "memory.stat", cache)
            yield Available(max(0, most - max(0, used)), f"memory limit of the cgroup {folder}")


def _address_space(proc: Path) -> Iterator[Available]:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        fields = read_text(proc / "self" / "statm").split()
        used = int(fields[0]) * os.sysconf("SC_PAGE_SIZE") if fields else 0
        yield Available(max(0, most - used), "address space limit of this process (ulimit -v)")


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _stat(path: Path, key: str) -> int:
    for line in read_text(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return _number(value) or 0
    return 0
