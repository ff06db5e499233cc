"""One safetensors file: its header, checked, and views of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from rllama.dtypes import dtype_by_safetensors_name
from rllama.errors import FormatError, UnsupportedError
from rllama.formats.files import printable, read_head, stat_path
from rllama.formats.json_file import parse_json
from rllama.formats.mapped_file import ByteSource, MappedFile
from rllama.tensor import TensorView

MAX_HEADER_BYTES = 100_000_000
_MAX_DIMS = 8
_MAX_NAME_BYTES = 1024
# Bits of every element type that the format knows, ours or not: the ranges are checked for all.
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the header.

    Units: offset from the start of the file, in bytes
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


def sniff_file(path: str) -> bool:
    """Whether the file begins with a possible header length and an opening brace."""
    head = read_head(path, 9)
    length = int.from_bytes(head[:8], "little")
    return head[8:] == b"{" and length + 8 <= stat_path(path).st_size


def read_entries(file: MappedFile) -> tuple[dict[str, Entry], dict[str, str]]:
    """Tensors and metadata of the header.

    Notes:   ranges follow each other without hole or overlap from the header's end to the file's
    Raises:  FormatError, UnsupportedError for an element type that the format does not know
    """
    length = int.from_bytes(file.read(0, 8, "header length"), "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, file.n_bytes - 8):
        raise FormatError(
            f"{file.where}: the header length {length} at offset 0 is impossible in a file of "
            f"{file.n_bytes} bytes"
        )
    text = file.read(8, length, "header")
    if text[:1] != b"{":
        raise FormatError(f"{file.where}: the header at offset 8 does not begin with '{{'")
    raw = parse_json(text, f"{file.where}: header", FormatError)
    metadata = _metadata(raw.pop("__metadata__", {}), file.where)
    base = 8 + length
    entries = {name: _entry(name, value, base, file.where) for name, value in raw.items()}
    _check_ranges(entries, base, file)
    return entries, metadata


def views(
    file: ByteSource, entries: dict[str, Entry], wanted: dict[str, str]
) -> dict[str, TensorView]:
    """Views of the tensors in `wanted` (name in the file to name in the result).

    Raises:  UnsupportedError for element types that we cannot run
    """
    found: dict[str, TensorView] = {}
    for name, ours in wanted.items():
        entry = entries[name]
        where = f"{file.where}: tensor {name!r}"
        dtype = dtype_by_safetensors_name(entry.dtype, where)
        data = file.slice(entry.offset, entry.n_bytes, where)
        origin = f"{file.where}:{name}@{entry.offset:#x}"
        found[ours] = TensorView(data, dtype, entry.shape, origin)
    return found


def _metadata(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise FormatError(f"{where}: __metadata__ must be an object of strings")
    return value


def _entry(name: str, value: Any, base: int, where: str) -> Entry:
    where = f"{where}: tensor '{printable(name)[:120]}'"
    if not name or len(name.encode()) > _MAX_NAME_BYTES:
        raise FormatError(f"{where}: the name is empty or longer than {_MAX_NAME_BYTES} bytes")
    if not isinstance(value, dict):
        raise FormatError(f"{where}: an object with dtype, shape and data_offsets is wanted")
    dtype, shape = value.get("dtype"), _shape(value.get("shape"), where)
    if not isinstance(dtype, str):
        raise FormatError(f"{where}: dtype must be a string, not {ascii(dtype)[:60]}")
    if dtype not in _BITS:
        raise UnsupportedError(f"{where}: dtype {ascii(dtype)[:60]} is not known")
    begin, end = _offsets(value.get("data_offsets"), where)
    bits = prod(shape) * _BITS[dtype]
    if bits % 8:
        raise UnsupportedError(f"{where}: {dtype} {list(shape)} does not fill whole bytes")
    if bits // 8 != end - begin:
        raise FormatError(
            f"{where}: {dtype} {list(shape)} needs {bits // 8} bytes, data_offsets give "
            f"{end - begin}"
        )
    return Entry(dtype, shape, base + begin, end - begin)


def _shape(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _MAX_DIMS:
        raise FormatError(f"{where}: shape must be a list of at most {_MAX_DIMS} sizes")
    for size in value:
        if type(size) is not int or not 0 <= size < 2**63:
            raise FormatError(f"{where}: shape has {ascii(size)[:60]} where a size is wanted")
    return tuple(value)


def _offsets(value: Any, where: str) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise FormatError(f"{where}: data_offsets must be a pair")
    begin, end = value
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        raise FormatError(f"{where}: data_offsets {ascii(value)[:80]} are no range")
    return begin, end


def _check_ranges(entries: dict[str, Entry], base: int, file: MappedFile) -> None:
    at = base
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].n_bytes)):
        if entry.offset != at:
            problem = "overlaps the tensor before" if entry.offset < at else "leaves a hole before"
            raise FormatError(
                f"{file.where}: tensor '{printable(name)}' at offset {entry.offset} {problem} "
                f"(expected {at})"
            )
        at += entry.n_bytes
        file.require(entry.offset, entry.n_bytes, f"tensor '{printable(name)}'")
    if at != file.n_bytes:
        raise FormatError(
            f"{file.where}: {file.n_bytes - at} bytes after the last tensor, which ends at {at}"
        )
