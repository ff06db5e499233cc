"""Random blocks of any type: every byte equally likely, but scales such that the values are sane.

For tests and measurements, which need weights of types that nothing here quantises to.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from rllama.dtypes import dtype_by_name
from rllama.quant import dequantize, quantize

_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a block has its scale, and where what is to be `factor` times it, or just `factor`."""

    scale: int = 0
    second: int | None = None
    factor: float = 0.0
    is_zero_point: bool = False


# The second number centres the values: half of the largest q, of whatever sign the format gives it.
_PLACES = {
    "Q4_1": _Place(0, 2, -7.5), "Q5_1": _Place(0, 2, -15.5), "Q4_K": _Place(0, 2, 7.5),
    "Q5_K": _Place(0, 2, 15.5), "Q2_K": _Place(80, 82, 1.5), "Q3_K": _Place(108),
    "Q6_K": _Place(208), "TQ1_0": _Place(52), "TQ2_0": _Place(64),
    "Q4_G": _Place(0, 2, 8.0, is_zero_point=True), "Q8_G": _Place(0, 2, -1.0, is_zero_point=True),
}  # fmt: skip


def random_blocks(
    name: str, rng: np.random.Generator, n_values: int, spread: float
) -> NDArray[np.uint8]:
    """Blocks of a type whose values have about this root mean square.

    Shapes: n_values, a multiple of the block -> [n_values / block_len * block_bytes]
    Notes:  scales are of either sign, up to a quarter off, so that nothing adds up
    """
    dtype = dtype_by_name(name)
    n = n_values // dtype.block_len
    if name in _FLOATS:
        return quantize(name, (spread * rng.standard_normal(n)).astype(np.float32))
    sizes = spread / _unit_spread(name) * rng.uniform(0.75, 1.25, n)
    scales = np.where(rng.integers(0, 2, n), sizes, -sizes)
    blocks = rng.integers(0, 256, (n, dtype.block_bytes), dtype=np.uint8)
    set_scales(name, blocks, scales)
    return blocks.reshape(-1)


@cache
def _unit_spread(name: str) -> float:
    """The root mean square of values under a scale of 1."""
    dtype = dtype_by_name(name)
    blocks = np.random.default_rng(0).integers(0, 256, (512, dtype.block_bytes), dtype=np.uint8)
    set_scales(name, blocks, np.ones(len(blocks)))
    values = dequantize(name, blocks, (len(blocks), dtype.block_len)).astype(np.float64)
    return float(np.sqrt(np.mean(values * values)))


def set_scales(name: str, blocks: NDArray[np.uint8], scales: NDArray[np.float64]) -> None:
    """Write the scales of block types, and mins in proportion.

    Shapes: blocks [n, block_bytes], scales [n]
    Notes:  MXFP4 has powers of two alone: the nearest one
    """
    if name == "MXFP4":
        blocks[:, 0] = np.rint(np.log2(np.abs(scales))).astype(np.int64) + 127
        return
    if name == "Q8_F32":
        blocks[:, :4] = scales.astype("<f4")[:, None].view(np.uint8)
        return
    if name == "IQ1_M":  # the f16 lies in the top nibbles of the last four u16
        half = scales.astype("<f2").view("<u2")
        for i in range(4):
            nibble = (half >> np.uint16(4 * i) & np.uint16(15)).astype(np.uint8)
            blocks[:, 49 + 2 * i] = blocks[:, 49 + 2 * i] & 15 | nibble << np.uint8(4)
        return
    place = _PLACES.get(name, _Place())
    blocks[:, place.scale : place.scale + 2] = _half_bytes(scales)
    if place.second is not None:
        second = (
            np.full(len(scales), place.factor) if place.is_zero_point else place.factor * scales
        )
        blocks[:, place.second : place.second + 2] = _half_bytes(second)


def _half_bytes(numbers: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Shapes: numbers [n] -> [n, 2]"""
    return np.ascontiguousarray(numbers.astype("<f2"))[:, None].view(np.uint8)
