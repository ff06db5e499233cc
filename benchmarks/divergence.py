"""How far one model's next-token distributions are from another's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
_ROWS = 256  # rows that are f64 at a time


@dataclass(frozen=True, slots=True)
class Divergence:
    """Kullback-Leibler divergence from a reference over the tokens of some texts.

    Units: mean, p999 (99.9 % of tokens are below) and largest in nats per token; top1 is the share
           of tokens after which both find the same one likeliest
    """

    mean: float
    p999: float
    largest: float
    top1: float

    @classmethod
    def of(cls, per_token: NDArray[np.float64], same_top: NDArray[np.bool_]) -> Divergence:
        return cls(
            float(per_token.mean()),
            float(np.quantile(per_token, 0.999)),
            float(per_token.max()),
            float(same_top.mean()),
        )

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def log_probs(logits: Logits) -> NDArray[np.float64]:
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
    return z


def per_token(reference: Logits, logits: Logits) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Divergence from the reference, in nats, and whether the likeliest token is the same.

    Shapes: both [T, V]; results [T]
    """
    nats = np.empty(len(reference))
    for start in range(0, len(reference), _ROWS):
        rows = slice(start, start + _ROWS)
        want, got = log_probs(reference[rows]), log_probs(logits[rows])
        nats[rows] = (np.exp(want) * (want - got)).sum(axis=1)
    return nats, reference.argmax(axis=1) == logits.argmax(axis=1)


def mean_difference(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], lengths: Sequence[int]
) -> tuple[float, float]:
    """Mean of ours minus theirs per token, and its standard error.

    Notes: texts, not tokens, are taken to be independent of each other
    """
    difference = ours - theirs
    mean = float(difference.mean())
    starts = np.cumsum([0, *lengths[:-1]])
    residues = np.add.reduceat(difference - mean, starts)
    n = len(lengths)
    error = np.sqrt((residues**2).sum() * n / max(n - 1, 1)) / len(difference)
    return mean, float(error)
