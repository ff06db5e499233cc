"""Engine: submit, step, abort, close. Synchronous, one thread at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence as Seq
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rllama.backend import Backend, KVStore
from rllama.batch import Batch
from rllama.config import EngineConfig, ModelConfig, SamplingParams
from rllama.engine._sampler import Sampler
from rllama.engine.assemble import Assembler
from rllama.engine.kv import KVCache
from rllama.engine.limits import check_config, context_and_cache
from rllama.engine.request import Request, Sequence, StepOutput
from rllama.engine.run import Run
from rllama.engine.scheduler import Scheduler
from rllama.errors import ConfigError, ContextFullError, EngineClosedError, OverloadedError
from rllama.tokenizers.base import Tokenizer


class Model(Protocol):
    """What the engine needs of a model."""

    @property
    def cfg(self) -> ModelConfig: ...

    def forward(self, batch: Batch, kv: KVStore) -> NDArray[np.float32]: ...


class Engine:
    """Turns requests into tokens, many at once.

    Notes:   what a request yields depends on nothing but the request: not on what else runs, on
             chunking, preemption or shared prefixes
    Raises:  ConfigError if the configuration contradicts itself or the model
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer | None, config: EngineConfig, backend: Backend
    ) -> None:
        cfg = model.cfg
        check_config(config, cfg)
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.max_seq_len, spec = context_and_cache(config, cfg)
        self.n_vocab = cfg.vocab_size
        eos_ids = set(cfg.eos_token_ids)
        if tokenizer is not None:
            self.n_vocab = min(cfg.vocab_size, tokenizer.n_pieces)
            if tokenizer.eos_token_id is not None:
                eos_ids.add(tokenizer.eos_token_id)
            eos_ids.update(tokenizer.stop_token_ids)
        self._eos_ids = frozenset(eos_ids)
        self._spec = spec
        self._store = backend.kv_store(spec)
        self._sampler = Sampler()
        self._is_closed = False
        self.reset()

    def reset(self) -> None:
        """Forget every sequence and everything in the cache."""
        config = self.config
        self.kv = KVCache(
            self._spec.groups,
            self._spec.page_len,
            max_step_tokens=config.max_batch_tokens,
            share_prefixes=config.share_prefixes,
        )
        self.scheduler = Scheduler(
            self.kv, max_batch_tokens=config.max_batch_tokens, max_seqs=config.max_seqs
        )
        self._assembler = Assembler(self.kv)
        self._runs: dict[int, Run] = {}
        self._ready: list[StepOutput] = []

    @property
    def has_work(self) -> bool:
        """True if a step would yield something, now or later."""
        return bool(self._runs or self._ready)

    @property
    def n_waiting(self) -> int:
        """Sequences that have not been started, or were preempted."""
        return len(self.scheduler.waiting)

    def prepare(self, request: Request) -> Sequence:
        """Check a request and give it a sequence, without touching the engine.

        Notes:   safe from any thread
        Raises:  ConfigError, ContextFullError
        """
        prompt, sampling = list(request.prompt_ids), request.sampling
        self._check_prompt(prompt)
        if sampling.stop and self.tokenizer is None:
            raise ConfigError(
                "stop texts need a tokenizer, and this model has none; use stop_token_ids"
            )
        seed = sampling.seed
        if seed is None:
            seed = int.from_bytes(os.urandom(8), "little")
        seq = Sequence(request, seed, prompt, len(prompt))
        seq.max_tokens = self.max_seq_len
        if sampling.max_new_tokens is not None:
            seq.max_tokens = min(seq.max_tokens, len(prompt) + sampling.max_new_tokens)
        return seq

    def _check_prompt(self, ids: list[int]) -> None:
        if not ids:
            raise ConfigError("the prompt has no tokens; give at least one")
        n_over = len(ids) - self.max_seq_len
        if n_over > 0:
            raise ContextFullError(
                f"the prompt has {len(ids)} tokens, {n_over} more than the context of "
                f"{self.max_seq_len}; shorten it or raise max_seq_len"
            )
        low, high, vocab_size = min(ids), max(ids), self.model.cfg.vocab_size
        if low < 0 or high >= vocab_size:
            raise ConfigError(
                f"token id {low if low < 0 else high} is outside the vocabulary of {vocab_size}"
            )

    def submit(self, request: Request) -> Sequence:
        """Queue a request. Raises ConfigError, ContextFullError, OverloadedError."""
        if self.n_waiting >= self.config.max_waiting:
            raise OverloadedError(f"{self.n_waiting} requests are waiting; try again later")
        seq = self.prepare(request)
        self.admit(seq)
        return seq

    def admit(self, seq: Sequence) -> None:
        """Queue a sequence that `prepare` gave."""
        self._check_open()
        run = Run(seq, self.tokenizer, n_vocab=self.n_vocab, eos_ids=self._eos_ids)
        if len(seq.token_ids) >= seq.max_tokens:
            seq.status = "finished"
            self._ready.append(run.end("length"))
            return
        self._runs[seq.id] = run
        self.scheduler.add(seq)

    def step(self) -> list[StepOutput]:
        """Run one batch; what it yielded, at most one output per sequence of it.

        Notes:   if the forward fails, the sequences of the batch end with its error
        """
        self._check_open()
        outputs, self._ready = self._ready, []
        plan = self.scheduler.plan()
        if not plan:
            return outputs
        for seq, _ in plan:
            seq.started_s = seq.started_s or time.perf_counter()
        batch = self._assembler.build(plan)
        try:
            logits = self.model.forward(batch, self._store)
        except Exception as error:
            for seq, _ in plan:
                outputs.append(self._retired(self._runs[seq.id].end("abort", error=error)))
            return outputs
        row = 0
        for seq, n_tokens in plan:
            seq.n_computed += n_tokens
            self.kv.commit(seq)
            if seq.n_computed == len(seq.token_ids):
                output = self._chosen(self._runs[seq.id], logits, row)
                row += 1
                outputs.append(output if output.finish_reason is None else self._retired(output))
            elif seq.n_output == 0:
                outputs.append(StepOutput(seq.id, n_prompt_done=seq.n_computed))
        return outputs

    def _chosen(self, run: Run, logits: NDArray[np.float32], row: int) -> StepOutput:
        try:
            return run.choose(self._sampler, logits, row)
        except Exception as error:  # one sequence's trouble stays its own
            return StepOutput(run.seq.id, finish_reason="abort", error=error)

    def _retired(self, output: StepOutput) -> StepOutput:
        self.scheduler.remove(self._runs.pop(output.seq_id).seq)
        return output

    def abort(self, seq_id: int) -> None:
        """End a sequence; the next step yields its last output. Nothing if it has ended."""
        run = self._runs.get(seq_id)
        if run is not None:
            self._ready.append(self._retired(run.end("abort")))

    def logits(self, token_ids: Seq[int]) -> NDArray[np.float32]:
        """Logits after each of the tokens.

        Shapes:  [T, V] f32
        Notes:   takes room from the youngest running sequences where there is not enough, and
                 neither uses nor leaves shared prefixes
        Raises:  ConfigError, ContextFullError
        """
        self._check_open()
        ids = list(token_ids)
        self._check_prompt(ids)
        sampling = SamplingParams().resolved(self.model.cfg.generation)
        seq = Sequence(Request(tuple(ids), sampling), 0, ids, len(ids))
        out = np.empty((len(ids), self.model.cfg.vocab_size), np.float32)
        try:
            while seq.n_computed < len(ids):
                end = min(seq.n_computed + self.config.max_batch_tokens, len(ids))
                while not self.kv.extend(seq, end):
                    self.scheduler.preempt_youngest()
                batch = self._assembler.build([(seq, end - seq.n_computed)], all_rows=True)
                out[seq.n_computed : end] = self.model.forward(batch, self._store)
                seq.n_computed = end
        finally:
            self.kv.free(seq)
        return out

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineClosedError("the engine is closed")

    def close(self) -> None:
        """Give the cache back. Further calls raise EngineClosedError; a second close is nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._runs.clear()
            self._ready.clear()
            self._store.close()
