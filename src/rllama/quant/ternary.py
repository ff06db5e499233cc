"""TQ1_0 and TQ2_0: 256 values of -1, 0, 1 under one scale.

    TQ1_0  | 48 bytes of five values | 4 bytes of four | f16 scale |       54 bytes
    TQ2_0  | 64 bytes of four values | f16 scale |                         66 bytes

A byte of TQ1_0 is a fraction of 256: times 3, its whole part is the next value. The digits of 32
(then 16, then 4) bytes belong to 32 (16, 4) values in a row. TQ2_0's pairs of bits lie as in Q2_K.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rllama.quant import blocks

_POWERS = np.array([1, 3, 9, 27, 81], dtype=np.uint8)
_PIECES = ((0, 32, 5), (32, 48, 5), (48, 52, 4))  # first byte, last byte, digits


def quantize_tq1_0(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantise rows.

    Shapes: x [..., K] -> [..., K/256*54]
    """
    scales, digits = _digits(x)
    parts, at = [], 0
    for first, last, n in _PIECES:
        size = (last - first) * n
        piece = digits[:, at : at + size].reshape(-1, n, last - first).astype(np.uint16)
        whole = (piece * _POWERS[::-1][:n, None].astype(np.uint16)).sum(axis=1, dtype=np.uint16)
        parts.append(((whole.astype(np.uint32) * 256 + 242) // 243).astype(np.uint8))
        at += size
    packed = np.concatenate([*parts, blocks.f16_bytes(scales)], axis=1)
    return blocks.join(packed, x.shape, 256)


def quantize_tq2_0(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantise rows.

    Shapes: x [..., K] -> [..., K/256*66]
    """
    scales, digits = _digits(x)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    pairs = np.bitwise_or.reduce(digits.reshape(-1, 2, 4, 32) << shifts, axis=2).reshape(-1, 64)
    packed = np.concatenate([pairs, blocks.f16_bytes(scales)], axis=1)
    return blocks.join(packed, x.shape, 256)


def dequantize_tq1_0(data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values of the blocks.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    packed = data.reshape(-1, 54)
    pieces = []
    for first, last, n in _PIECES:
        rest = packed[:, None, first:last] * _POWERS[:n, None]  # in 8 bits: the fraction stays
        pieces.append((rest.astype(np.uint16) * 3 >> 8).reshape(len(packed), -1))
    q = np.concatenate(pieces, axis=1).astype(np.float32) - np.float32(1.0)
    return (blocks.f16_scales(packed, 52) * q).reshape(shape)


def dequantize_tq2_0(data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values of the blocks.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    packed = data.reshape(-1, 66)
    q = blocks.bits(packed[:, :64].reshape(-1, 2, 32), 2, 4).reshape(-1, 256).astype(np.float32)
    return (blocks.f16_scales(packed, 64) * (q - np.float32(1.0))).reshape(shape)


def _digits(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Scales, and 0, 1, 2 for -1, 0, 1.

    Shapes: x [..., K] -> [n, 1], u8 [n, 256]
    """
    values = blocks.split(x, 256)
    scales = np.abs(values).max(axis=1, keepdims=True)
    rounded = blocks.round_half_away(values * blocks.inverse(scales))
    return scales, (rounded + np.float32(1.0)).astype(np.uint8)
