"""The little of protobuf that a SentencePiece model needs, to write and to read."""

from __future__ import annotations

from collections.abc import Iterator

from rllama.errors import FormatError

Value = int | bytes
_FIXED_BYTES = {1: 8, 5: 4}


def varint(value: int) -> bytes:
    """A protobuf base-128 number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def message(field: int, body: bytes) -> bytes:
    """A length-delimited field."""
    return varint(field << 3 | 2) + varint(len(body)) + body


def number(field: int, value: int) -> bytes:
    """A varint field."""
    return varint(field << 3) + varint(value)


def fields(data: bytes, kinds: dict[int, int], where: str) -> Iterator[tuple[int, Value]]:
    """The fields of one message that `kinds` names by number, with their wire type.

    Notes:   others are skipped; nothing nested is opened, so nothing recurses
    Raises:  FormatError for damage, and for a named field of another wire type: the library would
             skip it, and use another value than the one that was looked at here
    """
    pos, end = 0, len(data)
    while pos < end:
        tag, pos = (data[pos], pos + 1) if data[pos] < 0x80 else _varint(data, pos, where)
        kind, number = tag & 7, tag >> 3
        value: Value
        if kind == 0:
            value, pos = _varint(data, pos, where)
        else:
            if kind == 2:
                n_bytes, pos = _varint(data, pos, where)
            elif kind in _FIXED_BYTES:
                n_bytes = _FIXED_BYTES[kind]
            else:
                raise FormatError(f"{where}: protobuf wire type {kind} before offset {pos}; "
                                  "the file is damaged or no SentencePiece model")  # fmt: skip
            if n_bytes > end - pos:
                raise FormatError(f"{where}: a field of {n_bytes} bytes where {end - pos} are "
                                  "left; the file is truncated")  # fmt: skip
            value = data[pos : pos + n_bytes]
            pos += n_bytes
        if not 0 < number < 2**29:
            raise FormatError(f"{where}: protobuf field {number} before offset {pos}; "
                              "the file is damaged or no SentencePiece model")  # fmt: skip
        if number in kinds:
            if kind != kinds[number]:
                raise FormatError(f"{where}: protobuf field {number} has wire type {kind}, "
                                  f"expected {kinds[number]}; the file is damaged")  # fmt: skip
            yield number, value


def _varint(data: bytes, pos: int, where: str) -> tuple[int, int]:
    value = shift = 0
    while pos < len(data):
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, pos
        shift += 7
        if shift > 63:
            raise FormatError(f"{where}: a protobuf number has more than 10 bytes")
    raise FormatError(f"{where}: a protobuf number is cut off; the file is truncated")
