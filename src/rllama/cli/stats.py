"""What a run did, in one line: counts, rates, share of the bandwidth, memory."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from rllama import memory

if TYPE_CHECKING:
    from rllama.engine.completion import CompletionStats
    from rllama.llm import LLM

_SAMPLE_EVERY_S = 0.02


class PeakMemory:
    """The most anonymous memory that was seen; mapped file pages are not this process's own."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self._next_s = 0.0

    def sample(self) -> None:
        """Look, unless that was done a moment ago."""
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + _SAMPLE_EVERY_S
            self.n_bytes = max(self.n_bytes, memory.anonymous_bytes() or 0)


def banner(llm: LLM) -> str:
    """What is about to run, on what."""
    from rllama.models.base import held_dtype

    loaded = llm.loaded
    n_params = sum(math.prod(view.shape) for view in loaded.checkpoint.tensors.values())
    matrices = [view for view in loaded.checkpoint.tensors.values() if len(view.shape) > 1]
    types = sorted({held_dtype(view, f16=loaded.f16).name for view in matrices})
    threads = f"{llm.n_threads} thread{'s' if llm.n_threads > 1 else ''}"
    return (
        f"{llm.config.name or loaded.checkpoint.path}: {_short(n_params)} parameters, "
        f"{'+'.join(types)} {loaded.plan.weights_bytes / 1e6:.1f} MB, "
        f"context {llm.max_seq_len}, {threads}, {llm.isa}"
    )


def stats_line(llm: LLM, stats: CompletionStats, peak: PeakMemory) -> str:
    """Counts and times of one completion.

    Notes: a rate is left out where too little happened to measure one
    """
    parts = [_prompt_part(stats), _decode_part(llm, stats)]
    if stats.n_new_tokens:
        parts.append(f"first token {stats.first_token_s * 1e3:.0f} ms")
    if peak.n_bytes:
        parts.append(f"peak memory {peak.n_bytes / 1e6:.0f} MB")
    return ", ".join(parts)


def _prompt_part(stats: CompletionStats) -> str:
    cached = f" ({stats.n_cached_tokens} cached)" if stats.n_cached_tokens else ""
    rate = stats.prompt_tokens_per_s
    speed = f" at {rate:.1f} tok/s" if rate else ""
    return f"prompt {stats.n_prompt_tokens} tok{cached}{speed}"


def _decode_part(llm: LLM, stats: CompletionStats) -> str:
    rate = stats.decode_tokens_per_s
    speed = f" at {rate:.1f} tok/s" if rate else ""
    share = bandwidth_share(llm, stats)
    of_limit = f" = {share:.0%} of memory bandwidth" if share is not None else ""
    return f"output {stats.n_new_tokens} tok{speed}{of_limit}"


def bandwidth_share(llm: LLM, stats: CompletionStats) -> float | None:
    """Bytes that the decode steps read per second, over what this machine was measured to read.

    Notes: None until it was measured, or if there was nothing to time
    """
    from rllama.yardstick import load_bandwidth

    limit = load_bandwidth(llm.n_threads)
    if limit is None or stats.decode_s <= 0 or stats.n_decode_steps == 0:
        return None
    mean_context = stats.n_prompt_tokens + (stats.n_decode_steps + 1) / 2
    n_bytes = stats.n_decode_steps * llm.loaded.step_bytes(mean_context)
    return n_bytes / stats.decode_s / limit


def _short(count: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)
