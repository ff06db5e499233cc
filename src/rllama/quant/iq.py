"""IQ1, IQ2 and IQ3: 256 values; a code is the row of a code book, 8 or 4 values at once.

    IQ2_XXS  | f16 scale | 8 x (4 codes of 8 bits, u32: 4 x 7 signs, 4 bits of scale) |
    IQ2_XS   | f16 scale | 32 x u16: 9 bits of code, 7 signs | 8 bytes of scales |
    IQ2_S    | f16 scale | 32 codes | 32 bytes of signs | 8 bytes of code bits 9-10 | 8 of scales |
    IQ3_XXS  | f16 scale | 64 codes | 8 x u32: 4 x 7 signs, 4 bits of scale |
    IQ3_S    | f16 scale | 64 codes | 8 bytes of code bits 9 | 32 bytes of signs | 4 of scales |
    IQ1_S    | f16 scale | 32 codes | 8 x u16: 4 x code bits 9-11, 3 bits of scale, shift |
    IQ1_M    | 32 codes | 16 bytes: 2 x (code bits 9-11, shift) | 4 x u16: 4 x 3 bits of scale |

Where seven signs are stored, the eighth makes the number of minuses even. The four top nibbles of
IQ1_M's u16 are its f16 scale. IQ1 adds or subtracts an eighth (shift) to eight values at once.
"""

from __future__ import annotations

import base64
from functools import cache

import numpy as np
from numpy.typing import NDArray

from rllama.quant import code_books
from rllama.quant.blocks import bits, f16_scales, numbers

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

# What the small numbers of the books stand for (of the ggml project).
_IQ2 = (8, 25, 43)
_IQ3_XXS = (4, 12, 20, 28, 36, 44, 52, 62)
_IQ3_S = (1, 3, 5, 7, 9, 11, 13, 15)
_IQ1 = (-1, 0, 1)
_SHIFT = np.float32(0.125)


@cache
def _book(text: str, width: int, values: tuple[int, ...]) -> Floats:
    """The rows of a code book: [n, 8] of 2 bits, or [n, 4] of 4 bits."""
    rows = np.frombuffer(base64.b85decode(text), dtype="<u2")[:, None]
    return np.array(values, dtype=np.float32)[bits(rows, width, 16 // width)[:, :, 0]]


def _signs(eight: NDArray[np.unsignedinteger]) -> Floats:
    """Bits of bytes as 1 and -1. Shapes: eight [n, m] -> [n, m, 8]"""
    single = np.unpackbits(eight.astype(np.uint8)[..., None], axis=-1, bitorder="little")
    return np.float32(1.0) - np.float32(2.0) * single.astype(np.float32)


def _seven_signs(seven: NDArray[np.unsignedinteger]) -> Floats:
    """The same of seven bits, with an eighth that makes the number of minuses even."""
    single = np.unpackbits(seven.astype(np.uint8)[..., None], axis=-1, bitorder="little")
    odd = np.bitwise_xor.reduce(single, axis=-1)
    return _signs(seven.astype(np.uint8) | odd << np.uint8(7))


def _scale_nibbles(packed: Bytes, first: int, n: int) -> Floats:
    """Shapes: bytes first..first+n of packed -> [n_blocks, 2n]"""
    return (
        bits(packed[:, first : first + n, None], 4, 2).reshape(len(packed), -1).astype(np.float32)
    )


def _signs_and_scales(rest: NDArray[np.uint32]) -> tuple[Floats, Floats]:
    """Four times 7 signs and 4 bits of scale in a u32: signs [n, 8, 4, 8], scales [n, 8]."""
    seven = bits(rest[:, :, None], 7, 4).reshape(len(rest), 32)
    return _seven_signs(seven).reshape(-1, 8, 4, 8), (rest >> 28).astype(np.float32)


def dequantize_iq2_xxs(data: Bytes, shape: tuple[int, ...]) -> Floats:
    """Values of the blocks. Shapes: data [n_bytes] -> f32 `shape`"""
    packed = data.reshape(-1, 66)
    signs, small = _signs_and_scales(numbers(packed, 2, 66, "<u4")[:, 1::2])
    scales = f16_scales(packed) * (np.float32(0.5) + small) * np.float32(0.25)
    codes = packed[:, 2:].reshape(-1, 8, 8)[:, :, :4]
    rows = _book(code_books.IQ2_XXS, 2, _IQ2)[codes]
    return (scales[:, :, None, None] * rows * signs).reshape(shape)


def dequantize_iq2_xs(data: Bytes, shape: tuple[int, ...]) -> Floats:
    """Values of the blocks. Shapes: data [n_bytes] -> f32 `shape`"""
    packed = data.reshape(-1, 74)
    small = _scale_nibbles(packed, 66, 8)
    scales = f16_scales(packed) * (np.float32(0.5) + small) * np.float32(0.25)
    codes = numbers(packed, 2, 66, "<u2")
    signs = _seven_signs(codes >> np.uint32(9))
    rows = _book(code_books.IQ2_XS, 2, _IQ2)[codes & np.uint32(511)] * signs
    values: Floats = scales[:, :, None] * rows.reshape(-1, 16, 16)
    return values.reshape(shape)


def dequantize_iq2_s(data: Bytes, shape: tuple[int, ...]) -> Floats:
    """Values of the blocks. Shapes: data [n_bytes] -> f32 `shape`"""
    packed = data.reshape(-1, 82)
    small = _scale_nibbles(packed, 74, 8)
    scales = f16_scales(packed) * (np.float32(0.5) + small) * np.float32(0.25)
    high = bits(packed[:, 66:74, None], 2, 4).reshape(-1, 32).astype(np.uint16)
    rows = _book(code_books.IQ2_S, 2, _IQ2)[packed[:, 2:34] | high << np.uint16(8)]
    rows = rows * _signs(packed[:, 34:66])
    return (scales[:, :, None] * rows.reshape(-1, 16, 16)).reshape(shape)


def dequantize_iq3_xxs(data: Bytes, shape: tuple[int, ...]) -> Floats:
    """Values of the blocks. Shapes: data [n_bytes] -> f32 `shape`"""
    packed = data.reshape(-1, 98)
    signs, small = _signs_and_scales(numbers(packed, 66, 98, "<u4"))
    scales = f16_scales(packed) * (np.float32(0.5) + small) * np.float32(0.5)
    rows = _book(code_books.IQ3_XXS, 4, _IQ3_XXS)[packed[:, 2:66]].reshape(-1, 8, 4, 8)
    return (scales[:, :, None, None] * rows * signs).reshape(shape)


def dequantize_iq3_s(data: Bytes, shape: tuple[int, ...]) -> Floats:
    """Values of the blocks. Shapes: data [n_bytes] -> f32 `shape`"""
    packed = data.reshape(-1, 110)
    small = _scale_nibbles(packed, 106, 4)
    scales = f16_scales(packed) * (np.float32(1.0) + np.float32(2.0) * small)
    high = bits(packed[:, 66:74, None], 1, 8).reshape(-1, 64).astype(np.uint16)
    rows = _book(code_books.IQ3_S, 4, _IQ3_S)[packed[:, 2:66] | high << np.uint16(8)]
    rows = rows.reshape(-1, 32, 8) * _signs(packed[:, 74:106])
    return (scales[:, :, None] * rows.reshape(-1, 8, 32)).reshape(shape)


def dequantize_iq1_s(data: Bytes, shape: tuple[int, ...]) -> Floats:
    """Values of the blocks. Shapes: data [n_bytes] -> f32 `shape`"""
    packed = data.reshape(-1, 50)
    rest = numbers(packed, 34, 50, "<u2")
    scales = f16_scales(packed) * (2 * (rest >> 12 & 7) + 1).astype(np.float32)
    shifts = np.where(rest >> 15 == 0, _SHIFT, -_SHIFT)
    high = bits(rest[:, :, None], 3, 4).reshape(-1, 32).astype(np.uint16)
    rows = _book(code_books.IQ1, 2, _IQ1)[packed[:, 2:34] | high << np.uint16(8)]
    values: Floats = scales[:, :, None] * (rows.reshape(-1, 8, 32) + shifts[:, :, None])
    return values.reshape(shape)


def dequantize_iq1_m(data: Bytes, shape: tuple[int, ...]) -> Floats:
    """Values of the blocks. Shapes: data [n_bytes] -> f32 `shape`"""
    packed = data.reshape(-1, 56)
    small = numbers(packed, 48, 56, "<u2")
    half = np.bitwise_or.reduce(small >> 12 << np.array([0, 4, 8, 12], dtype=np.uint32), axis=1)
    scale = half.astype("<u2").view("<f2").astype(np.float32)[:, None]
    threes = bits(small[:, :, None], 3, 4).reshape(-1, 16)
    scales = scale * (2 * threes + 1).astype(np.float32)
    rest = bits(packed[:, 32:48, None], 4, 2).reshape(-1, 32).astype(np.uint16)
    shifts = np.where(rest >> 3 == 0, _SHIFT, -_SHIFT)
    rows = _book(code_books.IQ1, 2, _IQ1)[packed[:, :32] | (rest & 7) << np.uint16(8)]
    moved = (rows + shifts[:, :, None]).reshape(-1, 16, 16)
    values: Floats = scales[:, :, None] * moved
    return values.reshape(shape)
