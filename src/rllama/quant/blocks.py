"""What the block types share: cutting rows into blocks, scales, and C's way of rounding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK_LEN = 32


def split(x: NDArray[np.float32], length: int = BLOCK_LEN) -> NDArray[np.float32]:
    """Rows to blocks.

    Shapes: x [..., K] -> [n_blocks, length]
    """
    return x.reshape(-1, length)


def join(
    blocks: NDArray[np.uint8], x_shape: tuple[int, ...], length: int = BLOCK_LEN
) -> NDArray[np.uint8]:
    """Packed blocks to rows.

    Shapes: blocks [n_blocks, block_bytes] -> [..., K/length * block_bytes]
    """
    return blocks.reshape(*x_shape[:-1], x_shape[-1] // length * blocks.shape[-1])


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


def f16_scales(blocks: NDArray[np.uint8], at: int = 0) -> NDArray[np.float32]:
    """The half-precision numbers that begin at one byte of packed blocks.

    Shapes: blocks [n_blocks, block_bytes] -> f32 [n_blocks, 1]
    """
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def numbers(blocks: NDArray[np.uint8], first: int, last: int, kind: str) -> NDArray[np.uint32]:
    """Bytes first..last of packed blocks as little-endian numbers of a numpy type.

    Shapes: blocks [n_blocks, block_bytes] -> u32 [n_blocks, n]
    """
    return np.ascontiguousarray(blocks[:, first:last]).view(kind).astype(np.uint32)


def bits(packed: NDArray[np.unsignedinteger], width: int, n: int) -> NDArray[np.uint8]:
    """The n fields of `width` bits in every number, the lowest first.

    Shapes: packed [..., m] -> u8 [..., n, m]
    """
    shifts = np.arange(0, width * n, width, dtype=packed.dtype)[:, None]
    fields = packed[..., None, :] >> shifts & packed.dtype.type((1 << width) - 1)
    return fields.astype(np.uint8)


def nibbles(blocks: NDArray[np.uint8], first: int) -> NDArray[np.uint8]:
    """Values 0..31 of blocks that keep i in the low nibble of byte i, i + 16 in the high one.

    Shapes: blocks [n_blocks, block_bytes], the nibbles from byte `first` on -> u8 [n_blocks, 32]
    """
    return bits(blocks[:, first : first + 16], 4, 2).reshape(-1, BLOCK_LEN)


def pack_nibbles(q: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The other way; of larger numbers the low four bits.

    Shapes: q [n_blocks, 32] -> [n_blocks, 16]
    """
    return ((q[:, :16] & np.uint8(15)) | (q[:, 16:] << np.uint8(4))).astype(np.uint8)


def fifth_bits(blocks: NDArray[np.uint8], first: int) -> NDArray[np.uint8]:
    """Bit i of four bytes is the fifth bit of value i; as 0 or 16.

    Shapes: blocks [n_blocks, block_bytes] -> u8 [n_blocks, 32]
    """
    single = np.unpackbits(blocks[:, first : first + 4], axis=1, bitorder="little")
    return (single << np.uint8(4)).astype(np.uint8)


def pack_fifth_bits(q: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The other way.

    Shapes: q [n_blocks, 32], 0 to 31 -> [n_blocks, 4]
    """
    return np.packbits(q >> np.uint8(4), axis=1, bitorder="little")
