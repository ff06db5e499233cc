"""Q5_0: 32 values in 22 bytes.

    | f16 scale | 4 bytes of fifth bits | 16 bytes |       value = scale * (q - 16)

scale = x_max / -16, where x_max is the value of the largest magnitude, with its sign. Bit i of the
four bytes is the fifth bit of value i; the nibbles lie as in Q4_0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rllama.quant import blocks


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantise rows.

    Shapes: x [..., K] -> [..., K/32*22]
    """
    values = blocks.split(x)
    extreme = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)
    scales = extreme / np.float32(-16.0)
    shifted = values * blocks.inverse(scales) + np.float32(16.5)
    q = np.minimum(shifted.astype(np.uint8), np.uint8(31))
    packed = [blocks.f16_bytes(scales), blocks.pack_fifth_bits(q), blocks.pack_nibbles(q)]
    return blocks.join(np.concatenate(packed, axis=1), x.shape)


def dequantize(data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values of the blocks.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    packed = data.reshape(-1, 22)
    q = (blocks.nibbles(packed, 6) | blocks.fifth_bits(packed, 2)).astype(np.float32)
    return (blocks.f16_scales(packed) * (q - np.float32(16.0))).reshape(shape)
