"""The header of a GGUF file: keys, values and where the tensors lie. Knows nothing of models."""

from __future__ import annotations

import logging
import struct
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllama.dtypes import DType, dtype_by_gguf_id
from rllama.errors import FormatError, UnsupportedError
from rllama.formats.cursor import MAX_HEADER_BYTES, Cursor
from rllama.formats.files import printable
from rllama.formats.mapped_file import MappedFile

log = logging.getLogger(__name__)

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_KEY_BYTES = 65535
_MAX_NAME_BYTES = 255
_MAX_DIMS = 4
_MAX_ALIGNMENT = 65536
_MIN_KV_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
U32, F32, BOOL, STRING, ARRAY, F64 = 4, 6, 7, 8, 9, 12
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", U32: "I", 5: "i", F32: "f", BOOL: "B", 10: "Q", 11: "q",
    F64: "d",
}  # fmt: skip
_STRUCTS = {type_id: struct.Struct("<" + code) for type_id, code in _SCALARS.items()}
_NUMPY = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", U32: "<u4", 5: "<i4", F32: "<f4", BOOL: "<u1",
    10: "<u8", 11: "<i8", F64: "<f8",
}  # fmt: skip
TYPE_NAMES = {
    0: "u8", 1: "i8", 2: "u16", 3: "i16", U32: "u32", 5: "i32", F32: "f32", BOOL: "bool",
    STRING: "string", ARRAY: "array", 10: "u64", 11: "i64", F64: "f64",
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class GgufArray:
    """An array value. Numbers are here; strings are read later, by `GgufHeader.strings`."""

    element_type: int
    count: int
    numbers: NDArray[Any] | None = None
    bounds: NDArray[np.int64] | None = None

    def __str__(self) -> str:
        return f"array of {self.count} {TYPE_NAMES[self.element_type]}"


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies; dtype None where its type has no row in our registry.

    Shapes:  shape is rows first, the reverse of the order in the file
    Units:   offset from the start of the file, in bytes
    """

    name: str
    type_id: int
    dtype: DType | None
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


@dataclass(slots=True, eq=False)
class GgufHeader:
    """All keys and tensor records of a file."""

    cursor: Cursor
    version: int
    values: dict[str, Any] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    tensors: list[GgufTensor] = field(default_factory=list)
    alignment: int = 32

    @property
    def where(self) -> str:
        """The path, for messages."""
        return self.cursor.file.where

    def strings(self, key: str) -> list[str] | None:
        """The strings of an array key; None if it is absent or holds something else."""
        value = self.values.get(key)
        if not isinstance(value, GgufArray) or value.bounds is None:
            return None
        return self.cursor.strings_at(value.bounds, f"key {key!r}")


def parse(file: MappedFile) -> GgufHeader:
    """Read the header of a GGUF file, version 2 or 3.

    Notes:   tensor ranges are checked: aligned, in file order, without overlap, inside the file
    Raises:  FormatError if the header is damaged, UnsupportedError for other versions
    """
    cursor = Cursor(file)
    if cursor.take(4, "magic") != MAGIC:
        raise FormatError(f"{file.where}: the magic bytes at offset 0 are not 'GGUF'")
    header = GgufHeader(cursor, _version(cursor))
    n_tensors = _count(cursor, "tensor count", _MIN_TENSOR_BYTES)
    n_values = _count(cursor, "key count", _MIN_KV_BYTES)
    if n_values == 0 and n_tensors == 0:
        return header
    for index in range(n_values):
        _read_value(header, index)
    header.alignment = _alignment(header)
    records = [_read_tensor(header, index) for index in range(n_tensors)]
    _refuse_twins(file, [name for name, _, _, _ in records])
    header.tensors = _place(header, records)
    return header


def _version(cursor: Cursor) -> int:
    version = int(cursor.unpack(_U32, "version"))
    where = cursor.file.where
    if version & 0xFFFF == 0 and version:
        raise UnsupportedError(f"{where}: a big-endian GGUF file; only little-endian ones are read")
    if version not in _VERSIONS:
        raise UnsupportedError(
            f"{where}: GGUF version {version} is not supported; versions 2 and 3 are"
        )
    return version


def _count(cursor: Cursor, what: str, min_bytes: int) -> int:
    count = int(cursor.unpack(_U64, what))
    if count > cursor.remaining // min_bytes:
        raise FormatError(
            f"{cursor.file.where}: {what} {count} at offset {cursor.offset - 8}: the remaining "
            f"{cursor.remaining} bytes hold at most {cursor.remaining // min_bytes}"
        )
    return count


def _read_value(header: GgufHeader, index: int) -> None:
    cursor = header.cursor
    start = cursor.offset
    key = cursor.string(_MAX_KEY_BYTES, f"key {index}")
    if not key or not key.isprintable():
        raise FormatError(
            f"{cursor.file.where}: key {index} at offset {start} is empty or has control "
            f"characters: '{printable(key)}'"
        )
    if key in header.values:
        raise FormatError(f"{cursor.file.where}: key {key!r} occurs twice (at offset {start})")
    type_id = int(cursor.unpack(_U32, f"type of key {key!r}"))
    header.types[key] = type_id
    header.values[key] = _value(cursor, key, type_id)


def _value(cursor: Cursor, key: str, type_id: int) -> Any:
    what = f"value of key {key!r}"
    if type_id == STRING:
        return _text(cursor, what)
    if type_id == ARRAY:
        return _array(cursor, key)
    if type_id not in _STRUCTS:
        raise FormatError(
            f"{cursor.file.where}: key {key!r} has the value type {type_id}, which does not exist"
        )
    value = cursor.unpack(_STRUCTS[type_id], what)
    if type_id == BOOL:
        if value > 1:
            raise FormatError(f"{cursor.file.where}: {what} is the bool {value}; only 0 and 1 are")
        return bool(value)
    if type_id == F32:
        return float(str(np.float32(value)))  # 1e-05, not 9.999999747378752e-06
    return value


def _text(cursor: Cursor, what: str) -> str:
    start = cursor.offset
    length = int(cursor.unpack(_U64, what))
    if length > min(cursor.remaining, MAX_HEADER_BYTES):
        raise FormatError(
            f"{cursor.file.where}: {what} at offset {start}: a string of {length} bytes where "
            f"{cursor.remaining} remain"
        )
    data = cursor.take(length, what)
    text = data.decode("utf-8", "replace")
    if "\ufffd" in text and b"\xef\xbf\xbd" not in data:
        log.warning("%s: %s is not UTF-8", cursor.file.where, what)
    return text


def _array(cursor: Cursor, key: str) -> GgufArray:
    what = f"array of key {key!r}"
    type_id = int(cursor.unpack(_U32, what))
    count = int(cursor.unpack(_U64, what))
    if type_id == STRING:
        return GgufArray(STRING, count, bounds=cursor.skip_strings(count, what))
    if type_id == ARRAY:
        raise UnsupportedError(f"{cursor.file.where}: {what}: arrays of arrays are not supported")
    if type_id not in _NUMPY:
        raise FormatError(f"{cursor.file.where}: {what}: the element type {type_id} does not exist")
    numbers = cursor.array(_NUMPY[type_id], count, what)
    if type_id == BOOL and count and int(numbers.max()) > 1:
        raise FormatError(f"{cursor.file.where}: {what}: a bool other than 0 and 1")
    return GgufArray(type_id, count, numbers)


def _alignment(header: GgufHeader) -> int:
    key = "general.alignment"
    if key not in header.values:
        return 32
    where, value = header.cursor.file.where, header.values[key]
    if header.types[key] != U32:
        name = TYPE_NAMES[header.types[key]]
        raise FormatError(f"{where}: {key} has the type {name} where u32 is required")
    if not 1 <= value <= _MAX_ALIGNMENT or value & (value - 1):
        raise FormatError(
            f"{where}: {key} is {value}; it must be a power of two up to {_MAX_ALIGNMENT}"
        )
    return int(value)


def _read_tensor(header: GgufHeader, index: int) -> tuple[str, tuple[int, ...], int, int]:
    cursor = header.cursor
    start = cursor.offset
    name = cursor.string(_MAX_NAME_BYTES, f"name of tensor {index}")
    if not name or not name.isprintable():
        raise FormatError(
            f"{cursor.file.where}: the name of tensor {index} at offset {start} is empty or has "
            f"control characters: '{printable(name)}'"
        )
    what = f"tensor {name!r}"
    n_dims = int(cursor.unpack(_U32, what))
    if not 1 <= n_dims <= _MAX_DIMS:
        raise FormatError(
            f"{cursor.file.where}: {what} has {n_dims} dimensions; 1 to {_MAX_DIMS} are possible"
        )
    dims = tuple(int(cursor.unpack(_U64, what)) for _ in range(n_dims))
    type_id = int(cursor.unpack(_U32, what))
    offset = int(cursor.unpack(_U64, what))
    return name, dims[::-1], type_id, offset


def _refuse_twins(file: MappedFile, names: list[str]) -> None:
    if len(set(names)) == len(names):
        return
    twin = next(name for name in names if names.count(name) > 1)
    raise FormatError(f"{file.where}: the tensor {twin!r} occurs twice")


def _place(
    header: GgufHeader, records: list[tuple[str, tuple[int, ...], int, int]]
) -> list[GgufTensor]:
    file = header.cursor.file
    align = header.alignment
    base = -(-header.cursor.offset // align) * align
    end = base
    placed: list[GgufTensor] = []
    for name, shape, type_id, relative in records:
        where = f"tensor {name!r}"
        if relative % align:
            raise FormatError(
                f"{file.where}: {where}: offset {relative} is no multiple of the alignment {align}"
            )
        start = base + relative
        if start < end:
            raise FormatError(
                f"{file.where}: {where} starts at {start}, before the end {end} of the one before"
            )
        dtype, n_bytes = _size(file, name, shape, type_id)
        file.require(start, n_bytes, where)
        placed.append(GgufTensor(name, type_id, dtype, shape, start, n_bytes))
        end = start + n_bytes
    if file.n_bytes - end > align and placed and placed[-1].dtype is not None:
        log.warning("%s: %d bytes after the last tensor", file.where, file.n_bytes - end)
    return placed


def _size(
    file: MappedFile, name: str, shape: tuple[int, ...], type_id: int
) -> tuple[DType | None, int]:
    """Type and bytes of a tensor; an unknown type counts as no bytes, and nobody can read it."""
    if prod(shape) >= 2**62:
        raise FormatError(f"{file.where}: tensor {name!r}: the shape {list(shape)} is impossible")
    try:
        dtype = dtype_by_gguf_id(type_id, file.where)
    except UnsupportedError:
        return None, 0
    try:
        return dtype, dtype.n_bytes(shape)
    except FormatError as error:
        raise FormatError(f"{file.where}: tensor {name!r}: {error}") from error
