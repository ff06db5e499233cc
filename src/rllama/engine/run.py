"""Run: one sequence on its way from logits to token, text and end."""

from __future__ import annotations

import math
import time

import numpy as np
from numpy.typing import NDArray

from rllama.engine._sampler import Chain, Sampler
from rllama.engine.detokenize import Detokenizer
from rllama.engine.request import FinishReason, Sequence, StepOutput, TokenLogprob
from rllama.errors import BackendError
from rllama.tokenizers.base import Tokenizer


class Run:
    """What a sequence needs besides its place in the queues: sampling chain, stops, text.

    Notes:   ids from n_vocab on are legal in a prompt, but have no text and are never chosen;
             a token that ends the output is not part of it
    """

    __slots__ = ("_chain", "_detokenizer", "_n_vocab", "_stop_ids", "seq")

    def __init__(
        self,
        seq: Sequence,
        tokenizer: Tokenizer | None,
        *,
        n_vocab: int,
        eos_ids: frozenset[int],
    ) -> None:
        sampling = seq.request.sampling
        self.seq = seq
        self._n_vocab = n_vocab
        self._chain = Chain(
            n_vocab=n_vocab, temperature=sampling.temperature, top_k=sampling.top_k,
            top_p=sampling.top_p, min_p=sampling.min_p, seed=seq.seed,
            repetition_penalty=sampling.repetition_penalty, choice=seq.request.choice_index,
        )  # fmt: skip
        self._chain.see(seq.token_ids)
        self._stop_ids = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            self._stop_ids |= eos_ids
        self._detokenizer: Detokenizer | None = None
        if tokenizer is not None:
            self._detokenizer = Detokenizer(tokenizer, seq.token_ids, sampling.stop)

    def choose(self, sampler: Sampler, logits: NDArray[np.float32], row: int) -> StepOutput:
        """Take the next token from a row of logits. Raises BackendError if they are no numbers."""
        seq = self.seq
        try:
            token_id = sampler.draw(self._chain, logits, row, len(seq.token_ids))
        except BackendError as error:
            where = f"{error} at position {seq.n_computed - 1}; the weights may be damaged"
            raise BackendError(where) from None
        if token_id in self._stop_ids:
            return self.end("stop")
        logprobs, probability = self._logprobs(sampler, logits, row, token_id)
        seq.token_ids.append(token_id)
        seq.ended_s = time.perf_counter()
        seq.first_token_s = seq.first_token_s or seq.ended_s
        self._chain.see((token_id,))
        detokenizer, text = self._detokenizer, ""
        if detokenizer is not None:
            text = detokenizer.push(token_id)
            if detokenizer.stopped:
                return self.end("stop", (token_id,), text, logprobs, probability)
        if len(seq.token_ids) >= seq.max_tokens:
            return self.end("length", (token_id,), text, logprobs, probability)
        return StepOutput(seq.id, (token_id,), text, logprobs, probability, None, seq.n_prompt)

    def _logprobs(
        self, sampler: Sampler, logits: NDArray[np.float32], row: int, token_id: int
    ) -> tuple[tuple[TokenLogprob, ...], float | None]:
        request = self.seq.request
        n_top = request.sampling.logprobs
        if n_top is None and not request.want_probability:
            return (), None
        value, top = sampler.logprobs(logits, row, self._n_vocab, token_id, n_top or 0)
        if n_top is None:
            return (), math.exp(value)
        return (TokenLogprob(token_id, value, tuple(top)),), math.exp(value)

    def end(
        self,
        reason: FinishReason,
        token_ids: tuple[int, ...] = (),
        text: str = "",
        logprobs: tuple[TokenLogprob, ...] = (),
        probability: float | None = None,
        error: Exception | None = None,
    ) -> StepOutput:
        """The last output, with all text that was held back."""
        seq, detokenizer = self.seq, self._detokenizer
        if detokenizer is not None and not detokenizer.stopped:
            text += detokenizer.flush()
            if detokenizer.stopped and reason == "length":
                reason = "stop"
        seq.finish_reason = reason
        seq.ended_s = time.perf_counter()
        n_prompt_done = min(seq.n_computed, seq.n_prompt)
        return StepOutput(
            seq.id, token_ids, text, logprobs, probability, reason, n_prompt_done, error
        )
