"""Q4_G and Q8_G: 32 values under a scale and a zero point; readers make them, no file stores them.

    | f16 scale | f16 zero | 16 bytes |      Q4_G, 20 bytes, nibbles as in Q4_0
    | f16 scale | f16 zero | 32 x int8 |     Q8_G, 36 bytes

value = scale * (q - zero); a zero that is a whole number makes 0 exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rllama.quant import blocks


def quantize_q4_g(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantise rows.

    Shapes: x [..., K] -> [..., K/32*20]
    """
    scales, zeros, q = _steps(blocks.split(x), 0, 15)
    packed = [blocks.f16_bytes(scales), blocks.f16_bytes(zeros),
              blocks.pack_nibbles(q.astype(np.uint8))]  # fmt: skip
    return blocks.join(np.concatenate(packed, axis=1), x.shape)


def quantize_q8_g(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantise rows.

    Shapes: x [..., K] -> [..., K/32*36]
    """
    scales, zeros, q = _steps(blocks.split(x), -128, 127)
    packed = [blocks.f16_bytes(scales), blocks.f16_bytes(zeros), q.astype(np.int8).view(np.uint8)]
    return blocks.join(np.concatenate(packed, axis=1), x.shape)


def dequantize_q4_g(data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values of the blocks.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    packed = data.reshape(-1, 20)
    q = blocks.nibbles(packed, 4).astype(np.float32)
    return (blocks.f16_scales(packed) * (q - blocks.f16_scales(packed, 2))).reshape(shape)


def dequantize_q8_g(data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values of the blocks.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    packed = data.reshape(-1, 36)
    q = packed[:, 4:].view(np.int8).astype(np.float32)
    return (blocks.f16_scales(packed) * (q - blocks.f16_scales(packed, 2))).reshape(shape)


def _steps(
    values: NDArray[np.float32], least: int, most: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Scales, whole zero points and whole numbers least..most; 0 lies within every block's range.

    Shapes: values [n, 32] -> [n, 1], [n, 1], [n, 32]
    """
    low = np.minimum(values.min(axis=1, keepdims=True), np.float32(0.0))
    high = np.maximum(values.max(axis=1, keepdims=True), np.float32(0.0))
    with np.errstate(over="ignore"):
        scales = (high - low) / np.float32(most - least)
    inverse = blocks.inverse(scales)
    zeros = np.clip(np.rint(np.float32(least) - low * inverse), least, most)
    return scales, zeros, np.clip(np.rint(values * inverse) + zeros, least, most)
