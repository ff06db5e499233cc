"""Reference quantisers in numpy, one per weight type: slow, plain, and exact to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rllama.dtypes import dtype_by_name
from rllama.errors import FormatError, ShapeError
from rllama.quant import bf16, f16, f32, q4_0, q8_0, q8_f32

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Codec:
    """Both directions of one weight type."""

    quantize: Callable[[Floats], Bytes]
    dequantize: Callable[[Bytes, tuple[int, ...]], Floats]


CODECS: dict[str, Codec] = {
    "F32": Codec(f32.quantize, f32.dequantize),
    "F16": Codec(f16.quantize, f16.dequantize),
    "BF16": Codec(bf16.quantize, bf16.dequantize),
    "Q8_0": Codec(q8_0.quantize, q8_0.dequantize),
    "Q4_0": Codec(q4_0.quantize, q4_0.dequantize),
    "Q8_F32": Codec(q8_f32.quantize, q8_f32.dequantize),
}


def quantize(name: str, x: NDArray[np.floating]) -> Bytes:
    """Values to the bytes of a weight type.

    Shapes:  x [..., K] -> [..., row_bytes]
    Notes:   same rounding as ggml's reference; NaN and infinity have no place in a block type
    Raises:  UnsupportedError for an unknown type; FormatError if K is no multiple of the block,
             or a block type gets values that are not finite
    """
    dtype = dtype_by_name(name)
    values = np.ascontiguousarray(x, dtype=np.float32)
    if values.ndim == 0:
        raise ShapeError("a single number has no rows to quantise")
    dtype.row_bytes(values.shape[-1])
    if not dtype.is_float and not np.isfinite(values).all():
        raise FormatError(f"NaN or infinity cannot be stored as {dtype.name}")
    return CODECS[dtype.name].quantize(values)


def dequantize(name: str, data: Bytes | bytes | memoryview, shape: tuple[int, ...]) -> Floats:
    """The bytes of a weight type to values.

    Shapes:  any shape of bytes, dtype.n_bytes(shape) in all -> f32 `shape`
    Raises:  UnsupportedError for an unknown type; ShapeError if the bytes do not fit the shape
    """
    dtype = dtype_by_name(name)
    flat = (
        np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        if isinstance(data, np.ndarray)
        else np.frombuffer(data, dtype=np.uint8)
    )
    if flat.size != dtype.n_bytes(shape):
        raise ShapeError(
            f"{flat.size} bytes where {dtype.name} {list(shape)} needs {dtype.n_bytes(shape)}"
        )
    return CODECS[dtype.name].dequantize(flat, shape)
