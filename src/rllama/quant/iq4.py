"""IQ4_NL and IQ4_XS: nibbles that stand for a table of 16 values.

    IQ4_NL  | f16 scale | 16 bytes |                                          32 values in 18 bytes
    IQ4_XS  | f16 scale | u16 of 2 bits | 4 bytes of 4 bits | 128 bytes |    256 values in 136 bytes

IQ4_XS has a scale of 6 bits, less 32, for every 32 values: the low bits in bytes, the high ones in
the u16. The nibbles of 32 values lie as in Q4_0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rllama.quant import blocks

# Of the ggml project.
VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)


def dequantize_iq4_nl(data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values of the blocks.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    packed = data.reshape(-1, 18)
    return (blocks.f16_scales(packed) * VALUES[blocks.nibbles(packed, 2)]).reshape(shape)


def dequantize_iq4_xs(data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values of the blocks.

    Shapes: data [n_bytes] -> f32 `shape`
    """
    packed = data.reshape(-1, 136)
    high = blocks.bits(blocks.numbers(packed, 2, 4, "<u2"), 2, 8).reshape(-1, 8)
    low = blocks.bits(packed[:, 4:8, None], 4, 2).reshape(-1, 8)
    small = (low | high << np.uint8(4)).astype(np.float32) - np.float32(32.0)
    scales = blocks.f16_scales(packed) * small
    q = blocks.bits(packed[:, 8:].reshape(-1, 8, 16), 4, 2).reshape(-1, 8, 32)
    return (scales[:, :, None] * VALUES[q]).reshape(shape)
