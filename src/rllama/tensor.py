"""TensorView: read-only bytes of one tensor, with its type, shape and origin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rllama.dtypes import BF16, DType
from rllama.errors import ShapeError, UnsupportedError


@dataclass(frozen=True, slots=True, eq=False)
class TensorView:
    """One tensor as it lies in a mapped file (or in memory, where a reader had to re-block it).

    Shapes:  shape is logical, rows first: [N, K] for a matrix, [K] for a vector
    Notes:   `data` holds exactly dtype.n_bytes(shape) bytes, at any alignment, and keeps the
             mapping alive; `origin` ("file.gguf:blk.3.attn_q.weight@0x1a2b") goes into errors
    Raises:  ShapeError if the bytes do not match type and shape
    """

    data: memoryview
    dtype: DType
    shape: tuple[int, ...]
    origin: str

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

    def to_f32(self) -> np.ndarray:
        """The values as a new f32 array of `shape`; float types only. Raises UnsupportedError."""
        if self.dtype is BF16:
            bits = np.frombuffer(self.data, dtype="<u2").astype(np.uint32) << 16
            return bits.view(np.float32).reshape(self.shape)
        if self.dtype.numpy_name is None:
            raise UnsupportedError(f"{self.origin}: {self.dtype.name} is not a float type")
        values = np.frombuffer(self.data, dtype=self.dtype.numpy_name)
        return values.astype(np.float32).reshape(self.shape)
