"""BF16: the upper half of an f32, rounded to nearest even; a NaN stays a (quiet) NaN."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_QUIET = np.uint32(0x0040_0000)


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round to the upper 16 bits.

    Shapes: x [..., K] -> [..., 2*K]
    """
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    is_nan = (bits & np.uint32(0x7FFF_FFFF)) > np.uint32(0x7F80_0000)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.where(is_nan, (bits & np.uint32(0xFFFF_0000)) | _QUIET, bits + half)
    return np.ascontiguousarray((rounded >> np.uint32(16)).astype("<u2")).view(np.uint8)


def dequantize(data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Widen; exact.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    bits = data.view("<u2").astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32).reshape(shape)
