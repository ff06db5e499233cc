"""Q8_F32: 32 values in 36 bytes, as groups of llama2.c are re-blocked; no file stores it.

    | f32 scale | 32 x int8 |      value = scale * q,  scale = max|x| / 127

The quotient is rounded to even, as the exporter of those files does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rllama.quant import blocks


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantise rows.

    Shapes: x [..., K] -> [..., K/32*36]
    """
    values = blocks.split(x)
    scales = np.abs(values).max(axis=1, keepdims=True, initial=0.0) / np.float32(127.0)
    q = np.rint(values * blocks.inverse(scales)).astype(np.int8)
    scale_bytes = np.ascontiguousarray(scales.astype("<f4")).view(np.uint8)
    return blocks.join(np.concatenate([scale_bytes, q.view(np.uint8)], axis=1), x.shape)


def dequantize(data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values of the blocks.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    packed = data.reshape(-1, 36)
    scales = np.ascontiguousarray(packed[:, :4]).view("<f4")
    values: NDArray[np.float32] = packed[:, 4:].view(np.int8).astype(np.float32) * scales
    return values.reshape(shape)
