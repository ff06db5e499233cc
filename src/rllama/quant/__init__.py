"""Reference quantisers in numpy, one per weight type: slow, plain, and exact to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rllama.dtypes import dtype_by_name
from rllama.errors import FormatError, ShapeError, UnsupportedError
from rllama.quant import (
    bf16,
    f16,
    f32,
    groups,
    iq,
    iq4,
    k_quants,
    mxfp4,
    q4_0,
    q4_1,
    q4_k,
    q5_0,
    q5_1,
    q8_0,
    q8_f32,
    ternary,
)  # fmt: skip

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Codec:
    """Both directions of one weight type; quantize is None where types are only ever read."""

    quantize: Callable[[Floats], Bytes] | None
    dequantize: Callable[[Bytes, tuple[int, ...]], Floats]


CODECS: dict[str, Codec] = {
    "F32": Codec(f32.quantize, f32.dequantize),
    "F16": Codec(f16.quantize, f16.dequantize),
    "BF16": Codec(bf16.quantize, bf16.dequantize),
    "Q8_0": Codec(q8_0.quantize, q8_0.dequantize),
    "Q4_0": Codec(q4_0.quantize, q4_0.dequantize),
    "Q8_F32": Codec(q8_f32.quantize, q8_f32.dequantize),
    "Q4_1": Codec(q4_1.quantize, q4_1.dequantize),
    "Q5_0": Codec(q5_0.quantize, q5_0.dequantize),
    "Q5_1": Codec(q5_1.quantize, q5_1.dequantize),
    "Q2_K": Codec(None, k_quants.dequantize_q2_k),
    "Q3_K": Codec(None, k_quants.dequantize_q3_k),
    "Q4_K": Codec(q4_k.quantize, k_quants.dequantize_q4_k),
    "Q5_K": Codec(None, k_quants.dequantize_q5_k),
    "Q6_K": Codec(None, k_quants.dequantize_q6_k),
    "IQ4_NL": Codec(None, iq4.dequantize_iq4_nl),
    "IQ4_XS": Codec(None, iq4.dequantize_iq4_xs),
    "MXFP4": Codec(mxfp4.quantize, mxfp4.dequantize),
    "IQ3_XXS": Codec(None, iq.dequantize_iq3_xxs),
    "IQ3_S": Codec(None, iq.dequantize_iq3_s),
    "IQ2_XXS": Codec(None, iq.dequantize_iq2_xxs),
    "IQ2_XS": Codec(None, iq.dequantize_iq2_xs),
    "IQ2_S": Codec(None, iq.dequantize_iq2_s),
    "IQ1_S": Codec(None, iq.dequantize_iq1_s),
    "IQ1_M": Codec(None, iq.dequantize_iq1_m),
    "TQ1_0": Codec(ternary.quantize_tq1_0, ternary.dequantize_tq1_0),
    "TQ2_0": Codec(ternary.quantize_tq2_0, ternary.dequantize_tq2_0),
    "Q4_G": Codec(groups.quantize_q4_g, groups.dequantize_q4_g),
    "Q8_G": Codec(groups.quantize_q8_g, groups.dequantize_q8_g),
}


def quantize(name: str, x: NDArray[np.floating]) -> Bytes:
    """Values to the bytes of a weight type.

    Shapes:  x [..., K] -> [..., row_bytes]
    Notes:   same rounding as ggml's reference; NaN and infinity have no place in a block type
    Raises:  UnsupportedError for a type that is unknown or only read; FormatError if K is no
             multiple of the block, or a block type gets values that are not finite
    """
    dtype = dtype_by_name(name)
    values = np.ascontiguousarray(x, dtype=np.float32)
    if values.ndim == 0:
        raise ShapeError("a single number has no rows to quantise")
    dtype.row_bytes(values.shape[-1])
    if not dtype.is_float and not np.isfinite(values).all():
        raise FormatError(f"NaN or infinity cannot be stored as {dtype.name}")
    codec = CODECS[dtype.name]
    if codec.quantize is None:
        raise UnsupportedError(f"{dtype.name} is read, but nothing here quantises to it")
    return codec.quantize(values)


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
    with np.errstate(invalid="ignore", over="ignore"):  # scales of a file need not be finite
        return CODECS[dtype.name].dequantize(flat, shape)
