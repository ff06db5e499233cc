"""What the block types share: cutting rows into blocks, scales, and C's way of rounding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK_LEN = 32


def split(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows to blocks.

    Shapes: x [..., K] -> [n_blocks, 32]
    """
    return x.reshape(-1, BLOCK_LEN)


def join(blocks: NDArray[np.uint8], x_shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Packed blocks to rows.

    Shapes: blocks [n_blocks, block_bytes] -> [..., K/32 * block_bytes]
    """
    return blocks.reshape(*x_shape[:-1], x_shape[-1] // BLOCK_LEN * blocks.shape[-1])


def inverse(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """1/scale, and 0 where the scale is 0 or so small that its inverse is infinite."""
    with np.errstate(divide="ignore", over="ignore"):
        inverted = np.float32(1.0) / scales
    return np.where(np.isfinite(inverted), inverted, np.float32(0.0))


def round_half_away(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """C's roundf: halves go away from zero (numpy's own rint goes to even)."""
    whole = np.trunc(x)
    return whole + np.copysign((np.abs(x - whole) >= np.float32(0.5)).astype(np.float32), x)


def f16_bytes(scales: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Scales as half-precision numbers.

    Shapes: scales [n_blocks, 1] -> [n_blocks, 2]
    """
    with np.errstate(over="ignore", under="ignore"):
        return np.ascontiguousarray(scales.astype("<f2")).view(np.uint8)


def f16_scales(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The scales in the first two bytes of packed blocks.

    Shapes: blocks [n_blocks, block_bytes] -> f32 [n_blocks, 1]
    """
    return np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
