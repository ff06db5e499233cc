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
# Integers with a zero point per group, as readers of other files make them: f16 scale, f16 zero,
# then 32 values in 4 or 8 bits; value = scale * (q - zero) (no file stores these two).
Q4_G = DType("Q4_G", 32, 20)
Q8_G = DType("Q8_G", 32, 36)

DTYPES: tuple[DType, ...] = (
    F32, F16, BF16, Q8_0, Q4_0, Q8_F32,
    DType("Q4_1", 32, 20, gguf_id=3),
    DType("Q5_0", 32, 22, gguf_id=6),
    DType("Q5_1", 32, 24, gguf_id=7),
    DType("Q2_K", 256, 84, gguf_id=10),
    DType("Q3_K", 256, 110, gguf_id=11),
    DType("Q4_K", 256, 144, gguf_id=12),
    DType("Q5_K", 256, 176, gguf_id=13),
    DType("Q6_K", 256, 210, gguf_id=14),
    DType("IQ4_NL", 32, 18, gguf_id=20),
    DType("IQ4_XS", 256, 136, gguf_id=23),
    DType("MXFP4", 32, 17, gguf_id=39),
    DType("IQ3_XXS", 256, 98, gguf_id=18),
    DType("IQ3_S", 256, 110, gguf_id=21),
    DType("IQ2_XXS", 256, 66, gguf_id=16),
    DType("IQ2_XS", 256, 74, gguf_id=17),
    DType("IQ2_S", 256, 82, gguf_id=22),
    DType("IQ1_S", 256, 50, gguf_id=19),
    DType("IQ1_M", 256, 56, gguf_id=29),
    DType("TQ1_0", 256, 54, gguf_id=34),
    DType("TQ2_0", 256, 66, gguf_id=35),
    Q4_G, Q8_G,
)  # fmt: skip

_BY_NAME = {d.name: d for d in DTYPES}
_BY_GGUF_ID = {d.gguf_id: d for d in DTYPES if d.gguf_id is not None}
_BY_SAFETENSORS = {d.safetensors_name: d for d in DTYPES if d.safetensors_name is not None}

# Names of the GGUF types that exist but have no row here yet, for messages.
GGUF_TYPE_NAMES = {
    9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 40: "NVFP4",
    41: "Q1_0",
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
