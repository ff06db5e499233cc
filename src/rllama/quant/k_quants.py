"""Q2_K to Q6_K: 256 values; sub-blocks of 16 or 32 have small scales (and mins) of their own.

    Q2_K  | 16 bytes of scales | 64 bytes of 2 bits | f16 scale | f16 min |
    Q3_K  | 32 bytes of 1 bit | 64 bytes of 2 bits | 12 bytes of scales | f16 scale |
    Q4_K  | f16 scale | f16 min | 12 bytes of scales | 128 bytes of nibbles |
    Q5_K  | f16 scale | f16 min | 12 bytes of scales | 32 bytes of 1 bit | 128 bytes of nibbles |
    Q6_K  | 128 bytes of nibbles | 64 bytes of 2 bits | 16 x int8 scales | f16 scale |

value = scale * s * q - min * m, or scale * s * (q - offset). The bits of values that lie 32 apart
share a byte.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rllama.quant.blocks import bits, f16_scales

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def dequantize_q2_k(data: Bytes, shape: tuple[int, ...]) -> Floats:
    """Values of the blocks.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    packed = data.reshape(-1, 84)
    small = bits(packed[:, :16], 4, 2).astype(np.float32)
    scales = f16_scales(packed, 80) * small[:, 0]
    mins = f16_scales(packed, 82) * small[:, 1]
    q = bits(packed[:, 16:80].reshape(-1, 2, 32), 2, 4).reshape(-1, 16, 16).astype(np.float32)
    return (scales[:, :, None] * q - mins[:, :, None]).reshape(shape)


def dequantize_q3_k(data: Bytes, shape: tuple[int, ...]) -> Floats:
    """Values of the blocks.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    packed = data.reshape(-1, 110)
    low = bits(packed[:, 96:104], 4, 2).reshape(-1, 16)
    high = bits(packed[:, 104:108], 2, 4).reshape(-1, 16)
    small = (low | high << np.uint8(4)).astype(np.float32) - np.float32(32.0)
    scales = f16_scales(packed, 108) * small
    twos = bits(packed[:, 32:96].reshape(-1, 2, 32), 2, 4).reshape(-1, 16, 16)
    fours = bits(packed[:, :32], 1, 8).reshape(-1, 16, 16) << np.uint8(2)
    q = (twos | fours).astype(np.float32) - np.float32(4.0)
    values: Floats = scales[:, :, None] * q
    return values.reshape(shape)


def dequantize_q4_k(data: Bytes, shape: tuple[int, ...]) -> Floats:
    """Values of the blocks.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    packed = data.reshape(-1, 144)
    scales, mins = _six_bit_scales(packed)
    q = _nibbles(packed[:, 16:]).astype(np.float32)
    return (scales[:, :, None] * q - mins[:, :, None]).reshape(shape)


def dequantize_q5_k(data: Bytes, shape: tuple[int, ...]) -> Floats:
    """Values of the blocks.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    packed = data.reshape(-1, 176)
    scales, mins = _six_bit_scales(packed)
    fifths = bits(packed[:, 16:48], 1, 8) << np.uint8(4)
    q = (_nibbles(packed[:, 48:]) | fifths).astype(np.float32)
    return (scales[:, :, None] * q - mins[:, :, None]).reshape(shape)


def dequantize_q6_k(data: Bytes, shape: tuple[int, ...]) -> Floats:
    """Values of the blocks.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    packed = data.reshape(-1, 210)
    small = packed[:, 192:208].view(np.int8).astype(np.float32)
    scales = f16_scales(packed, 208) * small
    low = bits(packed[:, :128].reshape(-1, 2, 64), 4, 2).reshape(-1, 16, 16)
    high = bits(packed[:, 128:192].reshape(-1, 2, 32), 2, 4).reshape(-1, 16, 16)
    q = (low | high << np.uint8(4)).astype(np.float32) - np.float32(32.0)
    return (scales[:, :, None] * q).reshape(shape)


def _nibbles(packed: Bytes) -> Bytes:
    """Shapes: packed [n, 128] -> [n, 8, 32]"""
    return bits(packed.reshape(-1, 4, 32), 4, 2).reshape(-1, 8, 32)


def _six_bit_scales(packed: Bytes) -> tuple[Floats, Floats]:
    """Scales and mins of Q4_K and Q5_K; four of each stand alone, the upper bits of the other four
    lie above them.

    Shapes: packed [n, block_bytes] -> [n, 8], [n, 8]
    """
    first, second, third = packed[:, 4:8], packed[:, 8:12], packed[:, 12:16]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    mins = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return (
        f16_scales(packed) * scales.astype(np.float32),
        f16_scales(packed, 2) * mins.astype(np.float32),
    )
