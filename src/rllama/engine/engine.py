"""Engine: submit, step, abort, close. Synchronous, one thread at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rllama.backend import Backend, KVSpec, KVStore
from rllama.batch import Batch
from rllama.config import EngineConfig, ModelConfig, SamplingParams
from rllama.engine._sampler import Chain, Sampler
from rllama.engine.assemble import Assembler
from rllama.engine.detokenize import Detokenizer
from rllama.engine.kv import KVCache
from rllama.engine.request import FinishReason, Request, Sequence, StepOutput, TokenLogprob
from rllama.engine.scheduler import Plan, Scheduler
from rllama.errors import (
    BackendError,
    ConfigError,
    ContextFullError,
    EngineClosedError,
    OverloadedError,
)
from rllama.tokenizers.base import Tokenizer

DEFAULT_POSITIONS = 8192  # cache positions, beyond one full context, where n_pages is 0


class Model(Protocol):
    """What the engine needs of a model."""

    cfg: ModelConfig

    def forward(self, batch: Batch, kv: KVStore) -> NDArray[np.float32]: ...


def _checked(config: EngineConfig) -> EngineConfig:
    for name in ("max_batch_tokens", "max_seqs", "max_waiting", "page_len"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, not {getattr(config, name)}")
    for name in ("n_pages", "max_seq_len"):
        if getattr(config, name) < 0:
            raise ConfigError(f"{name} must not be negative, but is {getattr(config, name)}")
    return config


def _sizes(model: Model, config: EngineConfig) -> tuple[int, KVSpec]:
    """The context, and the cache that goes with it."""
    cfg, page_len = model.cfg, config.page_len
    if config.max_seq_len > cfg.max_seq_len:
        raise ConfigError(
            f"max_seq_len {config.max_seq_len} is beyond the {cfg.max_seq_len} of the model"
        )
    max_seq_len = config.max_seq_len or cfg.max_seq_len
    wanted = max(max_seq_len, min(config.max_seqs * max_seq_len, DEFAULT_POSITIONS))
    n_pages = config.n_pages or -(-wanted // page_len)
    if n_pages * page_len < max_seq_len:
        if config.max_seq_len:
            raise ConfigError(
                f"{n_pages} pages of {page_len} positions are too few for max_seq_len {max_seq_len}"
            )
        max_seq_len = n_pages * page_len
    dtype = config.kv_dtype
    if dtype == "auto":
        dtype = getattr(model, "kv_dtype", "f16")
    spec = KVSpec(cfg.n_layers, cfg.n_kv_heads, cfg.head_dim, page_len, n_pages, dtype)
    return max_seq_len, spec


@dataclass(slots=True, eq=False)
class _Run:
    """What the engine keeps of a sequence besides its place in the queues."""

    seq: Sequence
    chain: Chain
    stop_ids: frozenset[int]
    detokenizer: Detokenizer | None


class Engine:
    """Turns requests into tokens, many at once.

    Notes:   text of a request depends on nothing but the request: not on what else runs, on
             chunking, preemption or shared prefixes
    Raises:  ConfigError if numbers of the configuration contradict each other or the model
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer | None, config: EngineConfig, backend: Backend
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = _checked(config)
        self.max_seq_len, spec = _sizes(model, config)
        vocab_size = model.cfg.vocab_size
        self.n_vocab = min(vocab_size, tokenizer.vocab_size) if tokenizer else vocab_size
        eos = set(model.cfg.eos_token_ids)
        if tokenizer is not None and tokenizer.eos_token_id is not None:
            eos.add(tokenizer.eos_token_id)
        self._eos_ids = frozenset(eos)
        self._store = backend.kv_store(spec)
        self._sampler = Sampler()
        self._is_closed = False
        self.reset()

    def reset(self) -> None:
        """Forget every sequence and everything in the cache."""
        self.kv = KVCache(self._store, share_prefixes=self.config.share_prefixes)
        self.scheduler = Scheduler(
            self.kv,
            max_batch_tokens=self.config.max_batch_tokens,
            max_seqs=self.config.max_seqs,
        )
        self._assembler = Assembler(self.kv)
        self._runs: dict[int, _Run] = {}
        self._ready: list[StepOutput] = []

    @property
    def has_work(self) -> bool:
        return bool(self._runs or self._ready)

    @property
    def n_waiting(self) -> int:
        return len(self.scheduler.waiting)

    def prepare(self, request: Request) -> Sequence:
        """Check a request and give it a sequence, without touching the engine.

        Notes:   safe from any thread
        Raises:  ConfigError, ContextFullError
        """
        prompt, sampling = request.prompt_ids, request.sampling
        self._check_prompt(prompt)
        if sampling.stop and self.tokenizer is None:
            raise ConfigError(
                "stop texts need a tokenizer; this model has none (use stop_token_ids)"
            )
        seed = sampling.seed
        if seed is None:
            seed = int.from_bytes(os.urandom(8), "little")
        seq = Sequence(request, seed, list(prompt), len(prompt))
        seq.max_tokens = self.max_seq_len
        if sampling.max_new_tokens is not None:
            seq.max_tokens = min(seq.max_tokens, len(prompt) + sampling.max_new_tokens)
        return seq

    def _check_prompt(self, prompt: Iterable[int]) -> None:
        ids = tuple(prompt)
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
            raise OverloadedError(f"{self.n_waiting} requests are waiting already; try again later")
        seq = self.prepare(request)
        self.admit(seq)
        return seq

    def admit(self, seq: Sequence) -> None:
        """Queue a prepared sequence."""
        self._check_open()
        sampling = seq.request.sampling
        if len(seq.token_ids) >= seq.max_tokens:
            seq.status, seq.finish_reason = "finished", "length"
            self._ready.append(StepOutput(seq.id, finish_reason="length"))
            return
        chain = Chain(
            n_vocab=self.n_vocab, temperature=sampling.temperature, top_k=sampling.top_k,
            top_p=sampling.top_p, min_p=sampling.min_p, seed=seq.seed,
            repetition_penalty=sampling.repetition_penalty, choice=seq.request.choice_index,
        )  # fmt: skip
        chain.see(seq.token_ids)
        stop_ids = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            stop_ids |= self._eos_ids
        detokenizer = None
        if self.tokenizer is not None:
            # Rows beyond the tokenizer's are legal in a prompt, but have no text.
            with_text = [token_id for token_id in seq.token_ids if token_id < self.n_vocab]
            detokenizer = Detokenizer(self.tokenizer, with_text, sampling.stop)
        self._runs[seq.id] = _Run(seq, chain, stop_ids, detokenizer)
        self.scheduler.add(seq)

    def step(self) -> list[StepOutput]:
        """Run one batch; what it yielded, at most one output per sequence.

        Notes:   if the forward fails, the sequences of the batch end with its error
        """
        self._check_open()
        outputs, self._ready = self._ready, []
        plan = self.scheduler.plan()
        if not plan:
            return outputs
        batch, start = self._assembler.build(plan), time.perf_counter()
        try:
            logits = self.model.forward(batch, self._store)
        except Exception as error:
            return outputs + [self._fail(self._runs[seq.id], error) for seq, _ in plan]
        row = 0
        for seq, n_tokens in plan:
            seq.started_s = seq.started_s or start
            seq.n_computed += n_tokens
            self.kv.commit(seq)
            if seq.n_computed == len(seq.token_ids):
                outputs.append(self._choose(self._runs[seq.id], logits, row))
                row += 1
            elif seq.n_output == 0:
                outputs.append(StepOutput(seq.id, n_prompt_done=seq.n_computed))
        return outputs

    def _choose(self, run: _Run, logits: NDArray[np.float32], row: int) -> StepOutput:
        seq, request = run.seq, run.seq.request
        try:
            token_id = self._sampler.draw(run.chain, logits, row, len(seq.token_ids))
            logprobs, probability = self._logprobs(request, logits, row, token_id)
        except BackendError as error:
            where = f"{error} at position {seq.n_computed - 1}; the weights may be damaged"
            return self._fail(run, BackendError(where))
        if token_id in run.stop_ids:
            return self._finish(run, "stop")
        seq.first_token_s = seq.first_token_s or time.perf_counter()
        seq.token_ids.append(token_id)
        run.chain.see((token_id,))
        detokenizer, text = run.detokenizer, ""
        reason: FinishReason | None = None
        if detokenizer is not None:
            text = detokenizer.push(token_id)
            if detokenizer.stopped:
                reason = "stop"
        if reason is None and len(seq.token_ids) >= seq.max_tokens:
            reason = "length"
        if reason is not None:
            return self._finish(run, reason, (token_id,), text, logprobs, probability)
        return StepOutput(seq.id, (token_id,), text, logprobs, probability, None, seq.n_prompt)

    def _logprobs(
        self, request: Request, logits: NDArray[np.float32], row: int, token_id: int
    ) -> tuple[tuple[TokenLogprob, ...], float | None]:
        n_top = request.sampling.logprobs
        if n_top is None and not request.want_probability:
            return (), None
        value, top = self._sampler.logprobs(logits, row, self.n_vocab, token_id, n_top or 0)
        probability = float(np.exp(value))
        if n_top is None:
            return (), probability
        return (TokenLogprob(token_id, value, tuple(top)),), probability

    def _finish(
        self,
        run: _Run,
        reason: FinishReason,
        token_ids: tuple[int, ...] = (),
        text: str = "",
        logprobs: tuple[TokenLogprob, ...] = (),
        probability: float | None = None,
        error: Exception | None = None,
    ) -> StepOutput:
        seq, detokenizer = run.seq, run.detokenizer
        if detokenizer is not None and not detokenizer.stopped:
            text += detokenizer.flush()
            if detokenizer.stopped and reason == "length":
                reason = "stop"
        n_prompt_done = min(seq.n_computed, seq.n_prompt)
        self.scheduler.remove(seq)
        seq.finish_reason, seq.ended_s = reason, time.perf_counter()
        del self._runs[seq.id]
        return StepOutput(
            seq.id, token_ids, text, logprobs, probability, reason, n_prompt_done, error
        )

    def _fail(self, run: _Run, error: Exception) -> StepOutput:
        return self._finish(run, "abort", error=error)

    def abort(self, seq_id: int) -> None:
        """End a sequence; the next step yields its last output. Nothing if it has ended."""
        run = self._runs.get(seq_id)
        if run is not None:
            self._ready.append(self._finish(run, "abort"))

    def logits(self, token_ids: Iterable[int]) -> NDArray[np.float32]:
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
                n_tokens = min(self.config.max_batch_tokens, len(ids) - seq.n_computed)
                end = seq.n_computed + n_tokens
                while not self.kv.extend(seq, end):
                    self.scheduler.preempt_youngest()
                plan: Plan = [(seq, n_tokens)]
                batch = self._assembler.build(plan, all_rows=True)
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
            self._store.close()
