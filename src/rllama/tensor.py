"""TensorView: bytes of one tensor, with type, shape and origin; other ways to lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rllama.dtypes import BF16, DType
from rllama.errors import ShapeError, UnsupportedError
from rllama.packed import PackedView
from rllama.recipe import Recipe


@dataclass(frozen=True, slots=True, eq=False)
class TensorView:
    """One tensor as it lies in a mapped file (or in memory, where a reader had to re-block it).

    Shapes:  shape is logical, rows first: [N, K] for a matrix, [K] for a vector
    Notes:   `data` holds exactly dtype.n_bytes(shape) bytes, at any alignment, and keeps the
             mapping alive; `origin` ("file.gguf:blk.3.attn_q.weight@0x1a2b") goes into errors;
             `column_order` [K]: stored column j is to be multiplied by input column_order[j]
    Raises:  ShapeError if the bytes do not match type and shape
    """

    data: memoryview
    dtype: DType
    shape: tuple[int, ...]
    origin: str
    column_order: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        want = self.dtype.n_bytes(self.shape)
        if self.data.nbytes != want:
            raise ShapeError(
                f"{self.origin}: {self.data.nbytes} bytes where {self.dtype.name} "
                f"{list(self.shape)} needs {want}"
            )

    @property
    def n_bytes(self) -> int:
        return self.data.nbytes

    def rows(self, first: int, last: int) -> TensorView:
        """Rows first..last of a matrix (or values of a vector of floats), sharing the bytes."""
        n_rows, *rest = self.shape
        assert 0 <= first <= last <= n_rows
        width = self.n_bytes // n_rows
        return replace(self, data=self.data[first * width : last * width],
                       shape=(last - first, *rest))  # fmt: skip

    def part(self, index: int) -> TensorView:
        """One matrix of a stack: [E, N, K] gives [N, K], sharing the bytes."""
        one = self.rows(index, index + 1)
        return replace(one, shape=self.shape[1:], origin=f"{self.origin}[{index}]")

    def to_f32(self) -> NDArray[np.float32]:
        """The values as a new f32 array of `shape`; float types only. Raises UnsupportedError."""
        if self.dtype is BF16:
            bits = np.frombuffer(self.data, dtype="<u2").astype(np.uint32) << 16
            return bits.view(np.float32).reshape(self.shape)
        if self.dtype.numpy_name is None:
            raise UnsupportedError(f"{self.origin}: {self.dtype.name} is not a float type")
        values = np.frombuffer(self.data, dtype=self.dtype.numpy_name)
        return values.astype(np.float32).reshape(self.shape)


def in_memory(
    array: np.ndarray,
    dtype: DType,
    shape: tuple[int, ...],
    origin: str,
    column_order: NDArray[np.int32] | None = None,
) -> TensorView:
    """A view of bytes that were made here, from now on read-only."""
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    data = memoryview(array.reshape(-1).view(np.uint8).data)
    return TensorView(data, dtype, shape, origin, column_order)


@dataclass(frozen=True, slots=True, eq=False)
class JoinedView:
    """A matrix whose rows (axis 0) or columns (axis 1) lie in several files, piece after piece.

    Notes:   the pieces stay where they are; placed, they are one weight
    Raises:  ShapeError if they are no matrices of one type that fit together
    """

    parts: tuple[TensorView, ...]
    axis: int

    def __post_init__(self) -> None:
        first = self.parts[0]
        for part in self.parts:
            fits = len(part.shape) == 2 and part.shape[1 - self.axis] == first.shape[1 - self.axis]
            if not fits or part.dtype is not first.dtype:
                raise ShapeError(
                    f"{part.origin}: {part.dtype.name} {list(part.shape)} cannot be joined to "
                    f"{first.dtype.name} {list(first.shape)} along axis {self.axis}"
                )

    @property
    def dtype(self) -> DType:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        joined = sum(part.shape[self.axis] for part in self.parts)
        other = self.parts[0].shape[1 - self.axis]
        return (joined, other) if self.axis == 0 else (other, joined)

    @property
    def n_bytes(self) -> int:
        return sum(part.n_bytes for part in self.parts)

    @property
    def origin(self) -> str:
        kind = "columns" if self.axis else "rows"
        return f"{self.parts[0].origin} and {len(self.parts) - 1} more pieces of {kind}"

    def to_f32(self) -> NDArray[np.float32]:
        """The values as a new f32 array of `shape`; float types only. Raises UnsupportedError."""
        return np.concatenate([part.to_f32() for part in self.parts], axis=self.axis)

    def rows(self, first: int, last: int) -> JoinedView:
        """Rows first..last of the whole, sharing the bytes."""
        if self.axis == 1:
            return replace(self, parts=tuple(part.rows(first, last) for part in self.parts))
        cut: list[TensorView] = []
        start = 0
        for part in self.parts:
            a, b = max(first - start, 0), min(last - start, part.shape[0])
            if a < b:
                cut.append(part.rows(a, b))
            start += part.shape[0]
        return replace(self, parts=tuple(cut))


@dataclass(frozen=True, slots=True, eq=False)
class MadeView:
    """A tensor that is put together when it is placed: its file has its values in another order.

    Notes:   `make` gives its bytes, anew each time
    """

    dtype: DType
    shape: tuple[int, ...]
    origin: str
    make: Callable[[], NDArray[np.uint8]]

    @property
    def n_bytes(self) -> int:
        return self.dtype.n_bytes(self.shape)

    def made(self) -> TensorView:
        """The tensor itself, in memory of its own."""
        return in_memory(self.make(), self.dtype, self.shape, self.origin)

    def rows(self, first: int, last: int) -> TensorView:
        """Rows first..last, of a tensor made for them."""
        return self.made().rows(first, last)

    def to_f32(self) -> NDArray[np.float32]:
        """The values as a new f32 array of `shape`; float types only. Raises UnsupportedError."""
        return self.made().to_f32()


@dataclass(frozen=True, slots=True, eq=False)
class RecastView:
    """A float matrix that is quantised when it is placed.

    Raises:  ShapeError if its rows are no whole blocks
    """

    source: TensorView | JoinedView | MadeView
    recipe: Recipe

    def __post_init__(self) -> None:
        if not self.recipe.fits(self.source.shape[-1]):
            raise ShapeError(
                f"{self.origin}: rows of {self.source.shape[-1]} do not fill blocks of "
                f"{self.dtype.name}"
            )

    @property
    def dtype(self) -> DType:
        return self.recipe.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def origin(self) -> str:
        return self.source.origin

    @property
    def n_bytes(self) -> int:
        return self.dtype.n_bytes(self.shape)

    def rows(self, first: int, last: int) -> RecastView:
        """Rows first..last, of the source."""
        return replace(self, source=self.source.rows(first, last))

    def to_f32(self) -> NDArray[np.float32]:
        """The values before they are quantised."""
        return self.source.to_f32()


View = TensorView | JoinedView | MadeView | PackedView | RecastView
