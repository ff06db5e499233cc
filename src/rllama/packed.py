"""PackedView: a matrix as GPTQ, AWQ and llama2.rs pack it; blocks when it is placed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllama.dtypes import BF16, Q4_G, Q8_F32, Q8_G, DType
from rllama.errors import FormatError

Words = NDArray[np.uint32]
Floats = NDArray[np.float32]

# inputs: a word holds inputs of one row, words [K*bits/32, N]. rows: the same, [N, K*bits/32], as
# llama2.rs turns them. across: a word holds eight rows of one input, [K, N/8], as AWQ has them.
Layout = Literal["inputs", "rows", "across"]

_BLOCK = 32
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # which nibble of a word the j-th of its eight rows is in
_ROWS_AT_ONCE = 256  # in numpy, so that what is made on the way stays small


class Grid(NamedTuple):
    """Scale and zero of every group and row. Shapes: scales [groups, N], zeros [groups, N]"""

    scales: Floats
    zeros: NDArray[np.int16]


@dataclass(frozen=True, slots=True, eq=False)
class PackedView:
    """A matrix of whole numbers with a scale and a zero for each row and group of inputs.

    Shapes:  shape [N, K]; words as `layout` has it; group_of [K]; scales and zeros [groups, N], the
             zeros packed along N; for the layout "rows" [N, groups] and [N*bits/32, groups]
    Notes:   value[n, k] = scale[g, n] * (q[n, k] - zero[g, n]) with g = group_of[k]; to a stored
             zero `zero_offset` is added, then it is cut to its bits; `dtype` is what it becomes;
             words are those of the whole matrix, of which this may be some rows from first_row;
             stored_order: columns are sorted by group already, column j is for that input
    """

    words: Words
    zeros: Words
    scales: NDArray[np.floating] | NDArray[np.uint16]
    group_of: NDArray[np.int32]
    bits: int
    layout: Layout
    zero_offset: int
    dtype: DType
    shape: tuple[int, ...]
    origin: str
    first_row: int = 0
    stored_order: NDArray[np.int32] | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of what it becomes."""
        return self.dtype.n_bytes(self.shape)

    def rows(self, first: int, last: int) -> PackedView:
        """Rows first..last, sharing the words."""
        assert 0 <= first <= last <= self.shape[0]
        return replace(self, first_row=self.first_row + first, shape=(last - first, self.shape[1]))

    @property
    def column_order(self) -> NDArray[np.int32] | None:
        """The inputs that the blocks' columns are for; None where each has its own place."""
        if self.dtype is BF16:
            return None
        if self.stored_order is not None or (np.diff(self.group_of) >= 0).all():
            return self.stored_order
        return np.argsort(self.group_of, kind="stable").astype(np.int32)

    def grid(self) -> Grid:
        """Scales and zeros of these rows. Raises FormatError for scales that are not finite."""
        mine = slice(self.first_row, self.first_row + self.shape[0])
        scales, words = self.scales, self.zeros
        if self.layout == "rows":
            scales, words = scales.T, words.T
        narrow = scales[:, mine]
        if narrow.dtype == np.uint16:
            values = (narrow.astype(np.uint32) << 16).view(np.float32)
        else:
            values = narrow.astype(np.float32)
        if not np.isfinite(values).all():
            raise FormatError(f"{self.origin}: a scale is not finite")
        stored = unpack_along(words, self.bits, across=self.layout == "across")[:, mine]
        zeros = (stored.astype(np.int16) + self.zero_offset) & ((1 << self.bits) - 1)
        return Grid(values, zeros.astype(np.int16))

    def codes(self, first: int, last: int) -> NDArray[np.uint8]:
        """The whole numbers of some rows.

        Shapes:  result [last - first, K], inputs in their own order
        """
        rows = slice(self.first_row + first, self.first_row + last)
        if self.layout == "across":
            words = self.words[:, rows.start // 8 : -(-rows.stop // 8)]
            skip = rows.start % 8
            return unpack_along(words, 4, across=True)[:, skip : skip + last - first].T
        words = self.words[rows] if self.layout == "rows" else self.words[:, rows].T
        return unpack_along(words, self.bits)[:, : self.shape[1]]

    def to_f32(self) -> Floats:
        """The values as a new f32 array of `shape`, inputs in their own order."""
        out = np.empty(self.shape, dtype=np.float32)
        grid = self.grid()
        for first in range(0, self.shape[0], _ROWS_AT_ONCE):
            last = min(self.shape[0], first + _ROWS_AT_ONCE)
            scales = grid.scales[:, first:last].T[:, self.group_of]
            zeros = grid.zeros[:, first:last].T[:, self.group_of]
            out[first:last] = scales * (self.codes(first, last).astype(np.int16) - zeros)
        return out if self.stored_order is None else out[:, np.argsort(self.stored_order)]

    def heads(self, grid: Grid) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
        """What stands in front of each block, and what its whole numbers are lowered by.

        Shapes:  [groups, N, 4], [groups, N]
        Raises:  FormatError for scales beyond half precision
        """
        if self.dtype is Q8_F32:
            heads = np.ascontiguousarray(grid.scales, dtype="<f4")
            return heads.view(np.uint8).reshape(*heads.shape, 4), np.ascontiguousarray(grid.zeros)
        lowered = 128 if self.dtype is Q8_G else 0
        with np.errstate(over="ignore"):
            pairs = np.stack([grid.scales, grid.zeros - np.float32(lowered)], axis=2).astype("<f2")
        if not np.isfinite(pairs).all():
            raise FormatError(f"{self.origin}: a scale is beyond half precision")
        return np.ascontiguousarray(pairs).view(np.uint8), np.full(
            grid.zeros.shape, lowered, dtype=np.int16
        )


def unpack_along(words: Words, bits: int, *, across: bool = False) -> NDArray[np.uint8]:
    """Whole numbers packed along the last axis: [R, W] words to [R, W*32/bits].

    Notes:   a run of bits from bit 0 of the first word; across: in AWQ's order of nibbles
    """
    n = words.shape[1] * 32 // bits
    first = np.arange(n) * bits
    if across:
        first = first // 32 * 32 + 4 * np.array(_AWQ_ORDER)[np.arange(n) % 8]
    at, shift = first // 32, (first % 32).astype(np.uint32)
    values = words[:, at] >> shift
    cut = np.flatnonzero(shift + bits > 32)
    values[:, cut] |= words[:, at[cut] + 1] << (np.uint32(32) - shift[cut])
    return (values & np.uint32((1 << bits) - 1)).astype(np.uint8)


def packed_dtype(
    bits: int, group_of: NDArray[np.int32], scales: NDArray[np.floating] | NDArray[np.uint16]
) -> DType:
    """What a packed matrix becomes, exactly where that is possible.

    Notes:   blocks of 32 inputs of one group each, else BF16 values; scales that half precision
             cannot hold stay f32 in Q8_F32 (with 8 bits, less zeros, whole numbers need 9: BF16)
    """
    ordered = np.sort(group_of)
    if ordered.size % _BLOCK or (ordered[::_BLOCK] != ordered[_BLOCK - 1 :: _BLOCK]).any():
        return BF16
    if not _fits_half(scales):
        return Q8_F32 if bits < 8 else BF16
    return Q8_G if bits == 8 else Q4_G


def _fits_half(scales: NDArray[np.floating] | NDArray[np.uint16]) -> bool:
    if scales.dtype == np.float16:
        return True
    wide = scales
    if scales.dtype == np.uint16:
        wide = (scales.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        return bool(np.array_equal(wide.astype(np.float16).astype(np.float32), wide))
