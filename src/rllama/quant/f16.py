"""F16: IEEE half precision, rounded to nearest even; too large values become infinity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round to half precision.

    Shapes: x [..., K] -> [..., 2*K]
    """
    with np.errstate(over="ignore", under="ignore"):
        return np.ascontiguousarray(x.astype("<f2")).view(np.uint8)


def dequantize(data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Widen; exact.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    return data.view("<f2").astype(np.float32).reshape(shape)
