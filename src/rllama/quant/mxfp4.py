"""MXFP4: 32 values in 17 bytes.

    | exponent | 16 bytes |       value = 2^(exponent - 127) * e2m1

The nibbles lie as in Q4_0 and are floats of 4 bits: sign, two bits of exponent, one of mantissa.
The exponent is a power of two without sign or mantissa (e8m0).
Source: OCP Microscaling Formats, version 1.0
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rllama.quant import blocks

# Twice the e2m1 numbers, so that half the scale, which reaches one power lower, goes with them.
DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.float32)


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantise rows: the nearest number of each value; ties take the lower code.

    Shapes: x [..., K] -> [..., K/32*17]
    """
    values = blocks.split(x)
    most = np.abs(values).max(axis=1, keepdims=True)
    _, exponent = np.frexp(most)  # most = m * 2^exponent, 0.5 <= m < 1
    exponents = np.where(most > 0, np.clip(exponent - 3 + 127, 0, 254), 0).astype(np.uint8)
    errors = np.abs(_half_scales(exponents)[:, :, None] * DOUBLED - values[:, :, None])
    q = errors.argmin(axis=2).astype(np.uint8)
    return blocks.join(np.concatenate([exponents, blocks.pack_nibbles(q)], axis=1), x.shape)


def dequantize(data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values of the blocks.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    packed = data.reshape(-1, 17)
    return (_half_scales(packed[:, :1]) * DOUBLED[blocks.nibbles(packed, 1)]).reshape(shape)


def _half_scales(exponents: NDArray[np.uint8]) -> NDArray[np.float32]:
    """2^(exponent - 128), exact: the two smallest are subnormal."""
    return np.ldexp(np.float32(1.0), exponents.astype(np.int32) - 128)
