"""F32: the values themselves, little-endian."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The bytes of the values.

    Shapes: x [..., K] -> [..., 4*K]
    """
    return np.ascontiguousarray(x, dtype="<f4").view(np.uint8)


def dequantize(data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The values of the bytes.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    return data.view("<f4").astype(np.float32).reshape(shape)
