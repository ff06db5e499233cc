"""Q8_0: 32 values in 34 bytes.

    | f16 scale | 32 x int8 |      value = scale * q,  scale = max|x| / 127

The quotient uses the f32 scale, before it is rounded to f16, as ggml does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rllama.quant import blocks


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantise rows.

    Shapes: x [..., K] -> [..., K/32*34]
    """
    values = blocks.split(x)
    scales = np.abs(values).max(axis=1, keepdims=True, initial=0.0) / np.float32(127.0)
    q = blocks.round_half_away(values * blocks.inverse(scales)).astype(np.int8)
    out = np.concatenate([blocks.f16_bytes(scales), q.view(np.uint8)], axis=1)
    return blocks.join(out, x.shape)


def dequantize(data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values of the blocks.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    packed = data.reshape(-1, 34)
    q = packed[:, 2:].view(np.int8).astype(np.float32)
    return (q * blocks.f16_scales(packed)).reshape(shape)
