"""Q4_K, the way there: for every 32 values the scale and the min that fit them best.

The search is ggml's: 21 scales are tried, each value weighs as much as its size and the root mean
square of the 32; for each, scale and min follow from least squares. Sums are f32, in order, as in
kernels/quantize_q4_k.inc, whose bytes these are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rllama.quant import blocks

Floats = NDArray[np.float32]

_SUBS, _TRIES = 8, 20
_ZERO, _MOST = np.float32(0.0), np.float32(15.0)


def quantize(x: Floats) -> NDArray[np.uint8]:
    """Quantise rows.

    Shapes: x [..., K] -> [..., K/256*144]
    """
    values = blocks.split(x, 256).reshape(-1, _SUBS, 32)
    with np.errstate(all="ignore"):
        scales, mins = _search(values)
        scale, small_scales = _six_bits(scales)
        minimum, small_mins = _six_bits(-mins)
    half_scale, half_min = blocks.f16_bytes(scale), blocks.f16_bytes(minimum)
    step = blocks.f16_scales(half_scale) * small_scales
    low = -(blocks.f16_scales(half_min) * small_mins)
    inverse = np.where(step > 0, blocks.inverse(step), _ZERO)
    q = _steps(values, low[:, :, None], inverse[:, :, None]).astype(np.uint8)
    nibbles = (q[:, ::2] | q[:, 1::2] << np.uint8(4)).reshape(-1, 128)
    small = _pack_six_bits(small_scales.astype(np.uint8), small_mins.astype(np.uint8))
    packed = np.concatenate([half_scale, half_min, small, nibbles], axis=1)
    return blocks.join(packed, x.shape, 256)


def _search(values: Floats) -> tuple[Floats, Floats]:
    """Shapes: values [n, 8, 32] -> scales and mins [n, 8]"""
    least = np.minimum(values.min(axis=2), _ZERO)
    span = values.max(axis=2) - least
    weights = np.sqrt(_sum(values * values) / np.float32(32.0))[:, :, None] + np.abs(values)
    sum_w, sum_x = _sum(weights), _sum(weights * values)
    inverse = _MOST / span
    scale, low = np.float32(1.0) / inverse, least
    error = _error(values, weights, _steps(values, least[:, :, None], inverse[:, :, None]), scale,
                   low)  # fmt: skip
    for number in range(_TRIES):
        steps = np.float32(-1.0) + np.float32(0.1) * np.float32(number) + _MOST
        q = _steps(values, least[:, :, None], (steps / span)[:, :, None])
        weighted = weights * q
        sum_q, sum_qq, sum_qx = _sum(weighted), _sum(weighted * q), _sum(weighted * values)
        det = sum_w * sum_qq - sum_q * sum_q
        fit = (sum_w * sum_qx - sum_x * sum_q) / det
        fit_low = (sum_qq * sum_x - sum_q * sum_qx) / det
        other = np.where(fit_low > 0, sum_qx / sum_qq, fit)
        other_low = np.where(fit_low > 0, _ZERO, fit_low)
        off = _error(values, weights, q, other, other_low)
        better = (det > 0) & (off < error)
        error = np.where(better, off, error)
        scale, low = np.where(better, other, scale), np.where(better, other_low, low)
    alike = ~(span > 0)
    return np.where(alike, _ZERO, scale), np.where(alike, least, low)


def _sum(values: Floats) -> Floats:
    """The sum along the last axis, one after the other.

    Shapes: values [n, 8, 32] -> [n, 8]
    """
    total = np.zeros(values.shape[:2], dtype=np.float32)
    for i in range(values.shape[2]):
        total = total + values[:, :, i]
    return total


def _steps(values: Floats, low: Floats, inverse: Floats) -> Floats:
    """Whole numbers 0 to 15."""
    return np.clip(np.rint(inverse * (values - low)), _ZERO, _MOST).astype(np.float32)


def _error(values: Floats, weights: Floats, q: Floats, scale: Floats, low: Floats) -> Floats:
    off = scale[:, :, None] * q + low[:, :, None] - values
    return _sum(weights * (off * off))


def _six_bits(sizes: Floats) -> tuple[Floats, Floats]:
    """The scale of eight sizes, and those in 6 bits. Shapes: [n, 8] -> [n, 1], [n, 8]"""
    unit = np.maximum(sizes.max(axis=1, keepdims=True), _ZERO) / np.float32(63.0)
    steps = np.rint(blocks.inverse(unit) * sizes)
    return unit, np.clip(steps, _ZERO, np.float32(63.0)).astype(np.float32)


def _pack_six_bits(scales: NDArray[np.uint8], mins: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shapes: [n, 8], [n, 8] -> [n, 12]"""
    upper = scales[:, :4] | scales[:, 4:] >> 4 << 6
    lower = mins[:, :4] | mins[:, 4:] >> 4 << 6
    rest = (scales[:, 4:] & 15) | (mins[:, 4:] & 15) << 4
    return np.concatenate([upper, lower, rest], axis=1)
