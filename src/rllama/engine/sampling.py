"""How the next token is chosen: the numpy chain, the word on what `_sampler.cpp` computes.

The native chain is the only one at run time and gives the same token bit for bit; this one is
written to be read. Logits and weights are f32. Weights are rounded to multiples of 2^-34, so that
every sum of them in f64 is exact and its order does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rllama.config import ResolvedSampling
from rllama.errors import BackendError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

MASK = 0xFFFFFFFF
WEIGHT_UNIT = 2.0**-34


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox4x32 over a counter of four 32-bit words.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & MASK, (a >> 32) ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def uniform(seed: int, choice: int, position: int) -> float:
    """The one number in [0, 1), of 53 bits, that decides the token at a position."""
    counter = (position & MASK, position >> 32, choice, 0)
    w0, w1, _, _ = philox(counter, (seed & MASK, seed >> 32))
    return ((w0 >> 5) * 2.0**26 + (w1 >> 6)) * 2.0**-53


def exp_neg(x: F32) -> F32:
    """exp(x) for x <= 0 in f32 steps, relative error under 2e-7; -87 for all that is below."""
    f32 = np.float32
    x = np.maximum(x, f32(-87))
    n_doublings = np.rint(x * f32(1.44269504))
    rest = (x - n_doublings * f32(0.693359375)) - n_doublings * f32(-2.12194440e-4)
    series = np.full_like(rest, f32(1 / 5040))
    for term in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        series = series * rest + f32(term)
    scaled: F32 = np.ldexp(series, n_doublings.astype(np.int32))
    return scaled


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The tokens that are still in, by rising id.

    Shapes:  ids [n] i64, logits [n] f32, weights [n] f64
    Notes:   weights are relative to the likeliest token, which has 1; all 1 before `temper`
    """

    ids: NDArray[np.int64]
    logits: F32
    weights: F64

    def keep(self, mask: NDArray[np.bool_]) -> Candidates:
        return Candidates(self.ids[mask], self.logits[mask], self.weights[mask])

    def ranks(self) -> NDArray[np.int64]:
        """Indices, likeliest first; of equal logits the lower id first."""
        return np.argsort(-self.logits, kind="stable")


def penalise(kept: Candidates, params: ResolvedSampling, seen: Iterable[int]) -> Candidates:
    """Divide positive logits of tokens already present by the penalty, multiply negative ones."""
    penalty = np.float32(params.repetition_penalty)
    hit = np.isin(kept.ids, np.fromiter(seen, np.int64))
    logits = kept.logits
    punished = np.where(logits > 0, logits / penalty, logits * penalty).astype(np.float32)
    return replace(kept, logits=np.where(hit, punished, logits))


def temper(kept: Candidates, params: ResolvedSampling) -> Candidates:
    """Turn logits into weights at the temperature."""
    scale = np.float32(max(params.temperature, 1e-30))
    with np.errstate(over="ignore"):
        weights = exp_neg((kept.logits - kept.logits.max()) / scale).astype(np.float64)
    return replace(kept, weights=np.rint(weights / WEIGHT_UNIT) * WEIGHT_UNIT)


def keep_top_k(kept: Candidates, params: ResolvedSampling) -> Candidates:
    """Keep the k likeliest; 0 keeps all."""
    if params.top_k == 0:
        return kept
    mask = np.zeros(len(kept.ids), np.bool_)
    mask[kept.ranks()[: params.top_k]] = True
    return kept.keep(mask)


def keep_top_p(kept: Candidates, params: ResolvedSampling) -> Candidates:
    """Keep the likeliest, as few as reach the share top_p of what is left."""
    if params.top_p >= 1.0:
        return kept
    ranks = kept.ranks()
    sums = np.cumsum(kept.weights[ranks])
    n_kept = int(np.searchsorted(sums, params.top_p * sums[-1], side="left")) + 1
    mask = np.zeros(len(kept.ids), np.bool_)
    mask[ranks[:n_kept]] = True
    return kept.keep(mask)


def keep_min_p(kept: Candidates, params: ResolvedSampling) -> Candidates:
    """Drop what is below min_p times the likeliest; renormalising changes no such ratio."""
    return kept.keep(kept.weights >= params.min_p)


CHAIN = (keep_top_k, keep_top_p, keep_min_p)


def choose(
    logits: F32, params: ResolvedSampling, *, n_vocab: int, seen: Iterable[int], u: float
) -> int:
    """The next token by the whole chain: penalty, temperature, top-k, top-p, min-p, draw.

    Shapes:  logits [V], V at least n_vocab; ids from n_vocab on are never chosen
    Notes:   the draw takes the first survivor, by id, whose running sum exceeds u times the total
    Raises:  BackendError if a logit is NaN or the largest is infinite
    """
    kept = Candidates(np.arange(n_vocab), logits[:n_vocab].astype(np.float32), np.ones(n_vocab))
    if params.repetition_penalty != 1.0:
        kept = penalise(kept, params, seen)
    if not np.isfinite(kept.logits.max()):
        raise BackendError("logits are not finite")
    if params.temperature == 0.0 or params.top_k == 1:
        return int(np.argmax(kept.logits))
    kept = temper(kept, params)
    for step in CHAIN:
        kept = step(kept, params)
    sums = np.cumsum(kept.weights)
    return int(kept.ids[np.searchsorted(sums, u * sums[-1], side="right")])
