"""What the CPU backend makes of tensors that no kernel reads as they lie, when it places them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rllama.backend import Weight
from rllama.dtypes import BF16, F16, F32
from rllama.errors import FormatError
from rllama.packed import PackedView
from rllama.recipe import RECIPE_TYPES
from rllama.tensor import JoinedView, MadeView, RecastView, TensorView, in_memory

_BLOCK = 32
_FLOATS = (F32, F16, BF16)  # in the order of the kernels' formats
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
    inputs = None if view.stored_order is not None else order
    groups = view.group_of if inputs is None else view.group_of[inputs]
    heads, offsets = view.heads(view.grid())
    out = np.empty((n_rows, view.dtype.row_bytes(n_cols)), dtype=np.uint8)
    width = view.words.shape[1]
    kernels.unpack(
        view.words.reshape(-1).view(np.uint8),
        (1, width) if view.layout == "rows" else (width, 1),
        view.bits,
        view.layout == "across",
        view.first_row,
        inputs,
        np.ascontiguousarray(groups[::_BLOCK]),
        heads,
        offsets,
        out,
    )
    return in_memory(out, view.dtype, view.shape, view.origin, order)


def _as_bf16(view: PackedView) -> TensorView:
    from rllama.quant import quantize  # all codecs, which few models need

    out = np.empty((view.shape[0], 2 * view.shape[1]), dtype=np.uint8)
    for first in range(0, view.shape[0], _ROWS_AT_ONCE):
        last = min(view.shape[0], first + _ROWS_AT_ONCE)
        out[first:last] = quantize("BF16", view.rows(first, last).to_f32())
    return in_memory(out, BF16, view.shape, view.origin)


class Quantiser(Protocol):
    """A backend's `quantize`, and its way to make weights of views."""

    def place_whole(self, view: TensorView) -> Weight: ...

    def quantize(
        self, source: Weight, kind: int, group: int, scale_type: int, out: NDArray[np.uint8]
    ) -> bool: ...


def quantized(view: RecastView, kernels: Quantiser) -> TensorView:
    """A float matrix in the blocks of its recipe; pieces become one matrix.

    Raises:  FormatError for values that are not finite or too large
    """
    recipe, (n_rows, n_cols) = view.recipe, view.shape
    group = recipe.group or -(-n_cols // _BLOCK) * _BLOCK
    scale_type = _FLOATS.index(recipe.scale_dtype or view.source.dtype)
    out = np.empty((n_rows, view.dtype.row_bytes(n_cols)), dtype=np.uint8)
    first = 0
    for rows in _whole_rows(view.source):
        last = first + rows.shape[0]
        kind = list(RECIPE_TYPES).index(recipe.kind)
        source = kernels.place_whole(rows)
        if not kernels.quantize(source, kind, group, scale_type, out[first:last]):
            raise FormatError(
                f"{view.origin}: a value is not finite, or too large for {view.dtype.name}"
            )
        first = last
    return in_memory(out, view.dtype, view.shape, view.origin)


def _whole_rows(source: TensorView | JoinedView | MadeView) -> Iterator[TensorView]:
    """A matrix as runs of whole rows; pieces of columns are put together, some rows at a time."""
    if isinstance(source, MadeView):
        yield source.made()
    elif isinstance(source, TensorView):
        yield source
    elif source.axis == 0:
        yield from source.parts
    else:
        for first in range(0, source.shape[0], _ROWS_AT_ONCE):
            last = min(source.shape[0], first + _ROWS_AT_ONCE)
            cut = [part.rows(first, last) for part in source.parts]
            arrays = [np.frombuffer(part.data, np.uint8).reshape(last - first, -1) for part in cut]
            whole = np.concatenate(arrays, axis=1)
            shape = (last - first, source.shape[1])
            yield in_memory(whole, source.dtype, shape, source.origin)
