"""Completion, Piece: what a caller gets, gathered from the outputs of a request's steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from rllama.engine.request import FinishReason, Sequence, StepOutput, TokenLogprob


class Piece(str):
    """A piece of generated text, with what is known of the tokens that it came from.

    Notes:   may be empty, where a token's text is still held back; the last one carries
             finish_reason; probability, the last token's in the unmodified distribution, and
             logprobs are filled if they were asked for
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    probability: float | None
    finish_reason: FinishReason | None

    def __new__(
        cls,
        text: str = "",
        *,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
        probability: float | None = None,
        finish_reason: FinishReason | None = None,
    ) -> Piece:
        self = super().__new__(cls, text)
        self.token_ids = token_ids
        self.logprobs = logprobs
        self.probability = probability
        self.finish_reason = finish_reason
        return self


@dataclass(frozen=True, slots=True)
class CompletionStats:
    """How much was computed, and how long it took.

    Units:   tokens and seconds
    Notes:   first_token_s counts from the call, prefill_s from the prompt's first step, and
             decode_s from the first token on; other requests in the same steps share the time
    """

    n_prompt_tokens: int
    n_cached_tokens: int
    n_new_tokens: int
    n_decode_steps: int
    prefill_s: float
    decode_s: float
    first_token_s: float

    @property
    def prompt_tokens_per_s(self) -> float:
        """Prompt tokens computed, not cached, per second; 0 where there were none."""
        return _rate(self.n_prompt_tokens - self.n_cached_tokens, self.prefill_s)

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens after the first per second; 0 where there were none."""
        return _rate(self.n_decode_steps, self.decode_s)


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """What a prompt was continued with.

    Notes:   text is the continuation alone, without the stop text that ended it; logprobs has an
             entry per token if they were asked for, else it is None
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    finish_reason: FinishReason
    stats: CompletionStats


def piece_of(output: StepOutput) -> Piece | None:
    """The piece of a step; None where it only reports progress of the prompt."""
    if not (output.token_ids or output.text or output.finish_reason):
        return None
    return Piece(
        output.text,
        token_ids=output.token_ids,
        logprobs=output.logprobs,
        probability=output.probability,
        finish_reason=output.finish_reason,
    )


@dataclass(slots=True, eq=False)
class Gatherer:
    """Collects the outputs of one sequence into a completion."""

    seq: Sequence
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason = "abort"
    n_steps: int = 0

    def add(self, output: StepOutput) -> None:
        """Take one step's output."""
        self.texts.append(output.text)
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        if output.token_ids or output.finish_reason == "stop":
            self.n_steps += 1
        if output.finish_reason is not None:
            self.finish_reason = output.finish_reason

    def add_all(self, outputs: Iterable[StepOutput]) -> Completion:
        """Take the outputs of all steps."""
        for output in outputs:
            self.add(output)
        return self.completion()

    def completion(self) -> Completion:
        """What has been gathered so far."""
        wants_logprobs = self.seq.request.sampling.logprobs is not None
        return Completion(
            text="".join(self.texts),
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs) if wants_logprobs else None,
            finish_reason=self.finish_reason,
            stats=self.stats(),
        )

    def stats(self) -> CompletionStats:
        """Counts and times so far."""
        seq = self.seq
        first = seq.first_token_s or seq.ended_s
        return CompletionStats(
            n_prompt_tokens=seq.n_prompt,
            n_cached_tokens=seq.n_cached,
            n_new_tokens=len(self.token_ids),
            n_decode_steps=max(0, self.n_steps - 1),
            prefill_s=max(0.0, first - seq.started_s) if seq.started_s else 0.0,
            decode_s=max(0.0, seq.ended_s - first),
            first_token_s=max(0.0, first - seq.submitted_s),
        )
