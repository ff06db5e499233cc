"""Request, Sequence, StepOutput: what a user asks, its running state, and what a step yields."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import Literal

from rllama.config import ResolvedSampling

FinishReason = Literal["stop", "length", "abort"]
Status = Literal["waiting", "running", "finished"]

_next_id = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how to continue it.

    Notes: choice_index tells several continuations of one prompt and seed apart;
           want_probability asks for StepOutput.probability, a pass over the vocabulary per token
    """

    prompt_ids: tuple[int, ...]
    sampling: ResolvedSampling
    choice_index: int = 0
    want_probability: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log of a token's probability in the unmodified distribution, and the likeliest."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step yielded for one sequence.

    Notes:   `text` may be empty while bytes or a possible stop text are held back; the last
             output carries finish_reason and all text that was held; `probability` is the chosen
             token's in the unmodified distribution; n_prompt_done counts prompt tokens computed
             so far (prefill progress), and an output without tokens only reports progress;
             `error` says why the sequence ended if it failed, finish_reason is "abort" then
    """

    seq_id: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    probability: float | None = None
    finish_reason: FinishReason | None = None
    n_prompt_done: int = 0
    error: Exception | None = None


@dataclass(slots=True, eq=False)
class Sequence:
    """The running state of one request; owned by the engine.

    Units:   times in seconds of time.perf_counter; 0.0 until it has happened
    Notes:   n_computed tokens have keys and values in the cache; token_ids is prompt plus output;
             chain belongs to engine/kv.py alone
    """

    request: Request
    seed: int
    token_ids: list[int]
    n_prompt: int
    id: int = field(default_factory=lambda: next(_next_id))
    status: Status = "waiting"
    n_computed: int = 0
    n_cached: int = 0  # prompt tokens that came from the prefix cache
    max_tokens: int = 0  # prompt plus output, never beyond the context
    last_step: int = 0  # the scheduler's count when it was last served
    chain: list[bytes] = field(default_factory=list)  # hashes of its beginnings, as far as known
    finish_reason: FinishReason | None = None
    submitted_s: float = field(default_factory=time.perf_counter)
    started_s: float = 0.0  # its first step
    first_token_s: float = 0.0
    ended_s: float = 0.0

    @property
    def n_output(self) -> int:
        return len(self.token_ids) - self.n_prompt
