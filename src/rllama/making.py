"""What the CPU backend makes of tensors that no kernel reads as they lie, when it places them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rllama.dtypes import BF16, DType
from rllama.packed import PackedView
from rllama.quant import quantize
from rllama.tensor import TensorView

_BLOCK = 32
_ROWS_AT_ONCE = 256


class Unpacker(Protocol):
    """The kernels' `unpack`."""

    def unpack(
        self,
        words: NDArray[np.uint8],
        steps: tuple[int, int],
        bits: int,
        across_rows: bool,
        first_row: int,
        inputs: NDArray[np.int32] | None,
        group_of_block: NDArray[np.int32],
        heads: NDArray[np.uint8],
        offsets: NDArray[np.int16],
        out: NDArray[np.uint8],
    ) -> None: ...


def unpacked(view: PackedView, kernels: Unpacker) -> TensorView:
    """A packed matrix in the type that it says it becomes.

    Raises:  FormatError for scales that are not finite or too large
    """
    if view.dtype is BF16:
        return _as_bf16(view)
    n_rows, n_cols = view.shape
    order = view.column_order
    groups = view.group_of if order is None else view.group_of[order]
    heads, offsets = view.heads(view.grid())
    out = np.empty((n_rows, view.dtype.row_bytes(n_cols)), dtype=np.uint8)
    width = view.words.shape[1]
    kernels.unpack(
        view.words.reshape(-1).view(np.uint8),
        (1, width) if view.layout == "rows" else (width, 1),
        view.bits,
        view.layout == "across",
        view.first_row,
        order,
        np.ascontiguousarray(groups[::_BLOCK]),
        heads,
        offsets,
        out,
    )
    return in_memory(out, view.dtype, view.shape, view.origin, order)


def _as_bf16(view: PackedView) -> TensorView:
    out = np.empty((view.shape[0], 2 * view.shape[1]), dtype=np.uint8)
    for first in range(0, view.shape[0], _ROWS_AT_ONCE):
        last = min(view.shape[0], first + _ROWS_AT_ONCE)
        out[first:last] = quantize("BF16", view.rows(first, last).to_f32())
    return in_memory(out, BF16, view.shape, view.origin)


def in_memory(
    array: NDArray[np.uint8],
    dtype: DType,
    shape: tuple[int, ...],
    origin: str,
    column_order: NDArray[np.int32] | None = None,
) -> TensorView:
    """A view of bytes that were made here, from now on read-only."""
    array.flags.writeable = False
    return TensorView(memoryview(array.reshape(-1).data), dtype, shape, origin, column_order)
