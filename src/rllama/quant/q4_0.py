"""Q4_0: 32 values in 18 bytes.

    | f16 scale | 16 bytes |       value = scale * (q - 8),  scale = x_max / -8

x_max is the value of the largest magnitude, with its sign. Byte i holds value i in its low nibble
and value i + 16 in its high one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rllama.quant import blocks

_HALF = blocks.BLOCK_LEN // 2


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantise rows.

    Shapes: x [..., K] -> [..., K/32*18]
    """
    values = blocks.split(x)
    extreme = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)
    scales = extreme / np.float32(-8.0)
    # ggml's C code fuses this product and sum; in f64 the product is exact as well.
    shifted = values.astype(np.float64) * blocks.inverse(scales).astype(np.float64) + 8.5
    q = np.minimum(shifted.astype(np.float32).astype(np.int8), 15).astype(np.uint8)
    nibbles = q[:, :_HALF] | (q[:, _HALF:] << 4)
    return blocks.join(np.concatenate([blocks.f16_bytes(scales), nibbles], axis=1), x.shape)


def dequantize(data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values of the blocks.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    packed = data.reshape(-1, 18)
    nibbles = packed[:, 2:]
    q = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.float32) - np.float32(8.0)
    return (q * blocks.f16_scales(packed)).reshape(shape)
