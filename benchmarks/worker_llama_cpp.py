"""The llama.cpp side of a comparison: `worker_llama_cpp.py MODEL N_THREADS MAX_SEQ_LEN`."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
from worker import serve

_BATCH = 512
_SEQ_LEN_IN_CROWD = 512  # positions per sequence where several run at once


class _Context:
    """A llama_context with its batch, driven by greedy picks."""

    def __init__(self, model: Any, n_threads: int, n_ctx: int, n_seqs: int, variant: str) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = _BATCH
        params.n_seq_max = n_seqs
        params.n_threads = params.n_threads_batch = n_threads
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F16
        params.flash_attn_type = int("flash" in variant.split("+"))
        params.kv_unified = "unified" in variant.split("+")
        params.no_perf = True
        if hasattr(params, "n_outputs_max"):
            params.n_outputs_max = n_seqs
        self.context = llama_cpp.llama_init_from_model(model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot make a context for {variant!r}")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        vocab = llama_cpp.llama_model_get_vocab(model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(vocab)
        self.kept: list[list[int]] = []  # prompts that are still in the cache
        self._rows: dict[int, np.ndarray] = {}

    def _decode(self, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        """One llama_decode of (token, position, sequence, wants logits)."""
        batch = self.batch
        batch.n_tokens = len(entries)
        token, pos, seq_id, logits = batch.token, batch.pos, batch.seq_id, batch.logits
        for i, (token_id, position, seq, wanted) in enumerate(entries):
            token[i] = token_id
            pos[i] = position
            batch.n_seq_id[i] = 1
            seq_id[i][0] = seq
            logits[i] = wanted
        status = llama_cpp.llama_decode(self.context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")

    def _pick(self, index: int) -> int:
        """The likeliest token of the batch entry `index`."""
        pointer = llama_cpp.llama_get_logits_ith(self.context, index)
        address = ctypes.cast(pointer, ctypes.c_void_p).value or 0
        row = self._rows.get(address)
        if row is None:
            row = np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))
            self._rows[address] = row
        return int(row.argmax())

    def _prefill(self, seq: int, prompt: Sequence[int], last: int) -> None:
        """Compute `prompt` in batches; logits are wanted for position `last` only."""
        for start in range(0, len(prompt), _BATCH):
            chunk = prompt[start : start + _BATCH]
            self._decode([(t, p, seq, p == last) for p, t in enumerate(chunk, start)])

    def _fill(self, prompts: list[list[int]], *, keep: bool) -> list[int]:
        """Bring the prompts into the cache and return the first picks."""
        if keep and self.kept == prompts:
            for seq, prompt in enumerate(prompts):
                llama_cpp.llama_memory_seq_rm(self.memory, seq, len(prompt) - 1, -1)
        else:
            llama_cpp.llama_memory_clear(self.memory, False)
            for seq, prompt in enumerate(prompts):
                self._prefill(seq, prompt[:-1], -1)
        self.kept = prompts if keep else []
        return self._step([prompt[-1] for prompt in prompts], [len(p) - 1 for p in prompts])

    def _step(self, tokens: Sequence[int], positions: Sequence[int]) -> list[int]:
        self._decode(
            [(t, p, s, True) for s, (t, p) in enumerate(zip(tokens, positions, strict=True))]
        )
        return [self._pick(i) for i in range(len(tokens))]

    def time_prefill(self, prompt: Sequence[int]) -> float:
        llama_cpp.llama_memory_clear(self.memory, False)
        start = time.perf_counter()
        self._prefill(0, prompt, len(prompt) - 1)
        self._pick((len(prompt) - 1) % _BATCH)
        return time.perf_counter() - start

    def time_steps(self, prompts: list[list[int]], n_steps: int, *, keep: bool) -> float:
        tokens = self._fill(prompts, keep=keep)
        positions = [len(prompt) for prompt in prompts]
        start = time.perf_counter()
        for _ in range(n_steps):
            tokens = self._step(tokens, positions)
            positions = [position + 1 for position in positions]
        return time.perf_counter() - start

    def close(self) -> None:
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)


class LlamaCppSide:
    """llama.cpp with its own defaults: mapped file, repacking where it wants to, f16 cache."""

    def __init__(self, path: str, n_threads: int, max_seq_len: int) -> None:
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self._n_threads, self._max_seq_len = n_threads, max_seq_len
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        start = time.perf_counter()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._load_s = time.perf_counter() - start
        self._contexts: dict[tuple[str, int], _Context] = {}

    def about(self) -> dict[str, Any]:
        return {
            "engine": f"llama.cpp (llama-cpp-python {llama_cpp.__version__})",
            "system": llama_cpp.llama_print_system_info().decode(),
            "load_s": self._load_s,
        }

    def variants(self, n_seqs: int) -> list[str]:
        attention = ["plain", "flash"]
        if n_seqs == 1:
            return attention
        return [f"{a}+{kv}" for a in attention for kv in ("split", "unified")]

    def keep_only(self, variants: Sequence[str]) -> None:
        for key in [key for key in self._contexts if key[0] not in variants]:
            self._contexts.pop(key).close()

    def run(
        self, prompts: Sequence[Sequence[int]], n_steps: int, *, variant: str, keep: bool
    ) -> float:
        context = self._context(variant, len(prompts))
        if n_steps == 0:
            return context.time_prefill(prompts[0])
        return context.time_steps([list(p) for p in prompts], n_steps, keep=keep)

    def _context(self, variant: str, n_seqs: int) -> _Context:
        key = (variant, n_seqs)
        for other in [k for k in self._contexts if k[1] != n_seqs]:
            self._contexts.pop(other).close()
        if key not in self._contexts:
            n_ctx = self._max_seq_len if n_seqs == 1 else n_seqs * _SEQ_LEN_IN_CROWD
            self._contexts[key] = _Context(self._model, self._n_threads, n_ctx, n_seqs, variant)
        return self._contexts[key]


def main() -> None:
    path, n_threads, max_seq_len = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with contextlib.suppress(KeyboardInterrupt):
        serve(LlamaCppSide(path, n_threads, max_seq_len))


if __name__ == "__main__":
    main()
