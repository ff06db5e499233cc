"""The element types of weight files: one row each, the same list as `_kernels/rl_formats.h`."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from rllama.errors import FormatError, UnsupportedError


@dataclass(frozen=True, slots=True)
class DType:
    """How one weight type lies in memory.

    Units: block_len counts values, block_bytes counts bytes of one block
    """

    name: str
    block_len: int
    block_bytes: int
    gguf_id: int | None = None
    safetensors_name: str | None = None
    numpy_name: str | None = None

    @property
    def is_float(self) -> bool:
        """True where one value is one float: F32, F16, BF16."""
        return self.block_len == 1

    def row_bytes(self, n_values: int) -> int:
        """Bytes of a row of `n_values`. Raises FormatError if blocks would straddle rows."""
        if n_values % self.block_len:
            raise FormatError(
                f"a row of {n_values} values is no multiple of the {self.block_len}-value blocks "
                f"of {self.name}"
            )
        return n_values // self.block_len * self.block_bytes

    def n_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape, rows along the last axis."""
        if not shape:
            return self.row_bytes(1)
        return prod(shape[:-1]) * self.row_bytes(shape[-1])


F32 = DType("F32", 1, 4, gguf_id=0, safetensors_name="F32", numpy_name="<f4")
F16 = DType("F16", 1, 2, gguf_id=1, safetensors_name="F16", numpy_name="<f2")
BF16 = DType("BF16", 1, 2, gguf_id=30, safetensors_name="BF16")
Q8_0 = DType("Q8_0", 32, 34, gguf_id=8)
Q4_0 = DType("Q4_0", 32, 18, gguf_id=2)
# llama2.c v2 groups, re-blocked: f32 scale, then 32 int8 (no file stores this one).
Q8_F32 = DType("Q8_F32", 32, 36)

DTYPES: tuple[DType, ...] = (F32, F16, BF16, Q8_0, Q4_0, Q8_F32)

_BY_NAME = {d.name: d for d in DTYPES}
_BY_GGUF_ID = {d.gguf_id: d for d in DTYPES if d.gguf_id is not None}
_BY_SAFETENSORS = {d.safetensors_name: d for d in DTYPES if d.safetensors_name is not None}

# Names of the GGUF types that exist but have no row here yet, for messages.
GGUF_TYPE_NAMES = {
    3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
    14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


def dtype_by_name(name: str) -> DType:
    """Look a type up by its name, ignoring case. Raises UnsupportedError."""
    found = _BY_NAME.get(name.upper())
    if found is None:
        raise UnsupportedError(f"unknown weight type {name!r}; known: {', '.join(_BY_NAME)}")
    return found


def dtype_by_gguf_id(type_id: int, where: str) -> DType:
    """Look a GGUF type id up; `where` names file and tensor. Raises UnsupportedError."""
    found = _BY_GGUF_ID.get(type_id)
    if found is None:
        name = GGUF_TYPE_NAMES.get(type_id, "unknown")
        raise UnsupportedError(f"{where}: tensor type {type_id} ({name}) is not supported")
    return found


def dtype_by_safetensors_name(name: str, where: str) -> DType:
    """Look a safetensors dtype up; `where` names file and tensor. Raises UnsupportedError."""
    found = _BY_SAFETENSORS.get(name)
    if found is None:
        raise UnsupportedError(
            f"{where}: dtype {name!r} is not supported; known: {', '.join(_BY_SAFETENSORS)}"
        )
    return found
