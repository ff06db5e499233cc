"""Q4_1: 32 values in 20 bytes.

    | f16 scale | f16 min | 16 bytes |       value = scale * q + min

scale = (max - min) / 15; the nibbles lie as in Q4_0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rllama.quant import blocks


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantise rows.

    Shapes: x [..., K] -> [..., K/32*20]
    """
    scales, low, q = steps(blocks.split(x), 15)
    packed = [blocks.f16_bytes(scales), blocks.f16_bytes(low), blocks.pack_nibbles(q)]
    return blocks.join(np.concatenate(packed, axis=1), x.shape)


def dequantize(data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values of the blocks.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    packed = data.reshape(-1, 20)
    q = blocks.nibbles(packed, 4).astype(np.float32)
    return (blocks.f16_scales(packed) * q + blocks.f16_scales(packed, 2)).reshape(shape)


def steps(
    values: NDArray[np.float32], largest: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
    """Scales, mins and whole numbers 0..largest of blocks between their smallest and largest value.

    Shapes: values [n, 32] -> [n, 1], [n, 1], u8 [n, 32]
    """
    low = values.min(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        scales = (values.max(axis=1, keepdims=True) - low) / np.float32(largest)
    shifted = (values - low) * blocks.inverse(scales) + np.float32(0.5)
    return scales, low, np.minimum(shifted.astype(np.uint8), np.uint8(largest))
