"""The workloads that both sides of a comparison run, and the limit physics sets to each."""

from __future__ import annotations

import random
from dataclasses import dataclass

from limits import Limits
from mixes import Mix
from shapes import Shape

# Steps shorter than this make the clock and the drift of the machine matter; small models do more.
_SMALL_MODEL_WEIGHTS = 200_000_000


@dataclass(frozen=True, slots=True)
class Work:
    """A prompt for each of `n_seqs` sequences, then `n_steps` greedy steps of all of them.

    Units: n_prompt tokens per sequence; n_steps 0 means that the prompt itself is timed, otherwise
           the prompt is untimed and the steps count
    """

    name: str
    n_seqs: int
    n_prompt: int
    n_steps: int
    title: str

    @property
    def is_prefill(self) -> bool:
        return self.n_steps == 0

    @property
    def n_timed_tokens(self) -> int:
        return self.n_seqs * (self.n_prompt if self.is_prefill else self.n_steps)

    def prompts(self, shape: Shape, round_index: int) -> list[list[int]]:
        """Token ids for each sequence: new in every round, so that no cache can help, except
        behind a deep context, which both sides keep from round to round."""
        round_key = 0 if self.name == "decode_deep" else round_index
        rng = random.Random(f"{self.name}/{round_key}")
        first = min(300, shape.vocab_size // 2)
        return [
            [rng.randrange(first, shape.vocab_size) for _ in range(self.n_prompt)]
            for _ in range(self.n_seqs)
        ]

    @property
    def n_step_tokens(self) -> int:
        """Tokens of one timed step."""
        return self.n_seqs * self.n_prompt if self.is_prefill else self.n_seqs

    def step_bytes(self, shape: Shape, mix: Mix) -> int:
        """Bytes that one timed step must read: matrices, embedding rows, cache halfway through."""
        cached = 0 if self.is_prefill else self.n_seqs * (self.n_prompt + self.n_steps // 2)
        return mix.step_bytes(shape, self.n_step_tokens, cached)

    def limit_tokens_per_s(self, shape: Shape, mix: Mix, limits: Limits) -> float:
        """Tokens per second if reading and computing each ran at the machine's peak, overlapped.

        Notes: attention's sums, norms and sampling are free here, so no engine reaches it
        """
        read_s = self.step_bytes(shape, mix) / limits.read
        peak = limits.peak_for(mix.name)
        compute_s = shape.step_ops(self.n_step_tokens, self.n_seqs) / peak if peak else 0.0
        return self.n_step_tokens / max(read_s, compute_s)


def works(shape: Shape) -> dict[str, Work]:
    """The workloads by name; small models take more steps per timed run."""
    more = 3 if shape.layer_weights < _SMALL_MODEL_WEIGHTS else 1
    listed = (
        Work("prefill128", 1, 128, 0, "prefill 128"),
        Work("prefill512", 1, 512, 0, "prefill 512"),
        Work("decode", 1, 8, 64 * min(more, 2), "decode, shallow"),
        Work("decode_deep", 1, 1800, 32 * more, "decode behind 1,800 tokens"),
        Work("batch8", 8, 8, 32 * more, "decode, 8 sequences"),
        Work("batch16", 16, 8, 32 * more, "decode, 16 sequences"),
    )
    return {work.name: work for work in listed}
