"""Q5_1: 32 values in 24 bytes.

    | f16 scale | f16 min | 4 bytes of fifth bits | 16 bytes |       value = scale * q + min

scale = (max - min) / 31; the bits lie as in Q5_0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rllama.quant import blocks, q4_1


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantise rows.

    Shapes: x [..., K] -> [..., K/32*24]
    """
    scales, low, q = q4_1.steps(blocks.split(x), 31)
    packed = [blocks.f16_bytes(scales), blocks.f16_bytes(low),
              blocks.pack_fifth_bits(q), blocks.pack_nibbles(q)]  # fmt: skip
    return blocks.join(np.concatenate(packed, axis=1), x.shape)


def dequantize(data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values of the blocks.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    packed = data.reshape(-1, 24)
    q = (blocks.nibbles(packed, 8) | blocks.fifth_bits(packed, 4)).astype(np.float32)
    return (blocks.f16_scales(packed) * q + blocks.f16_scales(packed, 2)).reshape(shape)
