"""How far each pair of a head turns per position, and what its turn is multiplied by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rllama.config import ModelConfig, RopeScaling

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """What a table of rotations is made of.

    Shapes:  inv_freq [n/2] f64, n the rotated part of a head
    Units:   radians per position; factor without unit
    """

    inv_freq: F64
    factor: float = 1.0


def rotation(cfg: ModelConfig, max_seq_len: int, *, local: bool = False) -> Rotation:
    """The rotation of a model that is opened with a context of `max_seq_len` positions.

    Notes:   local: that of the layers with a window where they have their own, never scaled
    Source:  arXiv 2104.09864
    """
    theta = cfg.rope_theta
    if local and cfg.local_rope_theta is not None:
        return Rotation(1.0 / _periods(cfg, cfg.local_rope_theta))
    scaling = cfg.rope_scaling
    if scaling is None:
        return Rotation(1.0 / _periods(cfg, theta))
    return _KINDS[scaling.kind](cfg, scaling, max_seq_len)


def _n_rotated(cfg: ModelConfig) -> int:
    return cfg.n_rotated or cfg.head_dim


def _periods(cfg: ModelConfig, theta: float) -> F64:
    """Positions per radian of every rotated pair."""
    n = _n_rotated(cfg)
    periods: F64 = theta ** (np.arange(0, n, 2, dtype=np.float64) / n)
    return periods


def _linear(cfg: ModelConfig, scaling: RopeScaling, max_seq_len: int) -> Rotation:
    """All positions are divided by the factor."""
    return Rotation(1.0 / (_periods(cfg, cfg.rope_theta) * scaling.factor))


def _dynamic(cfg: ModelConfig, scaling: RopeScaling, max_seq_len: int) -> Rotation:
    """The base grows with the context once that is longer than the original one."""
    n, longest = _n_rotated(cfg), scaling.original_max_seq_len
    factor = scaling.factor
    stretch = factor * max(max_seq_len, longest) / longest - (factor - 1)
    return Rotation(1.0 / _periods(cfg, cfg.rope_theta * stretch ** (n / (n - 2))))


def _yarn(cfg: ModelConfig, scaling: RopeScaling, max_seq_len: int) -> Rotation:
    """Fast pairs stay, slow ones are divided, those between are mixed.

    Source:  arXiv 2309.00071
    """
    n, theta = _n_rotated(cfg), cfg.rope_theta

    def pair_that_turns(times: float) -> float:
        """Which pair makes so many turns within the original context."""
        return n * math.log(scaling.original_max_seq_len / (times * 2 * math.pi)) / (
            2 * math.log(theta)
        )  # fmt: skip

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, n - 1)
    if low == high:
        high += 0.001
    slow = np.clip((np.arange(n // 2, dtype=np.float64) - low) / (high - low), 0, 1)
    kept = 1.0 / _periods(cfg, theta)
    return Rotation(kept / scaling.factor * slow + kept * (1 - slow), _yarn_factor(scaling))


def _yarn_factor(scaling: RopeScaling) -> float:
    if scaling.attn_factor is not None:
        return scaling.attn_factor

    def growth(weight: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * weight * math.log(scaling.factor) + 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return growth(scaling.mscale) / growth(scaling.mscale_all_dim)
    return growth(1.0)


def _llama3(cfg: ModelConfig, scaling: RopeScaling, max_seq_len: int) -> Rotation:
    """As yarn, with the turns within the original context as the measure.

    Source:  arXiv 2407.21783
    """
    kept = 1.0 / _periods(cfg, cfg.rope_theta)
    turns = scaling.original_max_seq_len * kept / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    fast = np.clip((turns - low) / (high - low), 0, 1)
    return Rotation(kept / scaling.factor * (1 - fast) + kept * fast)


def _longrope(cfg: ModelConfig, scaling: RopeScaling, max_seq_len: int) -> Rotation:
    """Every pair has a factor of its own: one list within the original context, one beyond.

    Source:  arXiv 2402.13753
    """
    longest = scaling.original_max_seq_len
    factors = scaling.long_factors if max_seq_len > longest else scaling.short_factors
    inv_freq = 1.0 / (_periods(cfg, cfg.rope_theta) * np.array(factors, dtype=np.float64))
    if scaling.attn_factor is not None:
        return Rotation(inv_freq, scaling.attn_factor)
    if scaling.factor <= 1.0:
        return Rotation(inv_freq)
    return Rotation(inv_freq, math.sqrt(1 + math.log(scaling.factor) / math.log(longest)))


_KINDS: dict[str, Callable[[ModelConfig, RopeScaling, int], Rotation]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}
