"""The rllama side of a comparison: `worker_rllama.py MODEL N_THREADS MAX_SEQ_LEN [ISA]`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from worker import serve

import rllama
from rllama.config import EngineConfig, SamplingParams
from rllama.engine.engine import Engine
from rllama.engine.request import Request
from rllama.loader import load

_PAGE_LEN = 64


class RllamaSide:
    """The engine as it is, without a tokenizer: token ids in, token ids out, f16 cache."""

    def __init__(self, path: str, n_threads: int, max_seq_len: int, isa: str | None) -> None:
        config = EngineConfig(
            max_seq_len=max_seq_len,
            page_len=_PAGE_LEN,
            n_pages=max_seq_len // _PAGE_LEN,
            kv_dtype="f16",
        )
        start = time.perf_counter()
        self._loaded = load(path, n_threads=n_threads, isa=isa, engine=config)
        self._engine = Engine(self._loaded.model, None, self._loaded.engine, self._loaded.backend)
        self._load_s = time.perf_counter() - start

    def about(self) -> dict[str, Any]:
        return {
            "engine": f"rllama {rllama.__version__}",
            "isa": getattr(self._loaded.backend, "isa", None),
            "n_threads": getattr(self._loaded.backend, "n_threads", None),
            "load_s": self._load_s,
        }

    def variants(self, n_seqs: int) -> list[str]:
        return ["default"]

    def keep_only(self, variants: Sequence[str]) -> None:
        pass

    def run(
        self, prompts: Sequence[Sequence[int]], n_steps: int, *, variant: str, keep: bool
    ) -> float:
        """Seconds of the prompt, or of the steps after it.

        Notes: the deep prompt comes from the prefix cache after its first round, which `keep`
               asks for; the other prompts are new every time and cannot
        """
        start = time.perf_counter()
        self._prefill(prompts, n_new=n_steps + 1)
        if n_steps:
            start = time.perf_counter()
            for _ in range(n_steps):
                self._step(len(prompts))
        seconds = time.perf_counter() - start
        if self._engine.has_work:
            raise RuntimeError("sequences are left over: the workload was not what it says")
        return seconds

    def _prefill(self, prompts: Sequence[Sequence[int]], *, n_new: int) -> None:
        """Step until each prompt has its first token."""
        sampling = SamplingParams(temperature=0, ignore_eos=True, max_new_tokens=n_new)
        resolved = sampling.resolved(self._loaded.cfg.generation)
        for prompt in prompts:
            self._engine.submit(Request(tuple(prompt), resolved))
        n_started = 0
        while n_started < len(prompts):
            n_started += sum(len(output.token_ids) for output in self._engine.step())

    def _step(self, n_seqs: int) -> None:
        n_tokens = sum(len(output.token_ids) for output in self._engine.step())
        if n_tokens != n_seqs:
            raise RuntimeError(f"a step gave {n_tokens} tokens for {n_seqs} sequences")


def main() -> None:
    path, n_threads, max_seq_len = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    isa = sys.argv[4] if len(sys.argv) > 4 else None
    with contextlib.suppress(KeyboardInterrupt):
        serve(RllamaSide(path, n_threads, max_seq_len, isa))


if __name__ == "__main__":
    main()
