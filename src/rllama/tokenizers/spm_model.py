"""Reads a SentencePiece .model and checks it before the library sees a byte of it."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from rllama.errors import FormatError, UnsupportedError
from rllama.tokenizers.vocabulary import (
    MAX_PIECES,
    NORMAL,
    UNKNOWN,
    Vocabulary,
    check_vocabulary,
)

Value = int | bytes
_MODEL_TYPES = (1, 2, 3, 4)  # unigram, BPE, word, char
_FIXED_BYTES = {1: 8, 5: 4}


@dataclass(slots=True)
class SpmModel:
    """What a ModelProto says that matters here."""

    vocab: Vocabulary
    strips_space: bool
    unk_surface: bytes


@dataclass(slots=True)
class _Parts:
    pieces: list[bytes] = field(default_factory=list)
    scores: list[bytes] = field(default_factory=list)
    types: bytearray = field(default_factory=bytearray)
    trainer: dict[int, Value] = field(default_factory=dict)
    normalizer: dict[int, Value] = field(default_factory=dict)
    denormalizer: dict[int, Value] = field(default_factory=dict)


def read_spm_model(data: bytes, where: str) -> SpmModel:
    """Parse and check a ModelProto.

    Notes:   unknown fields are skipped, of repeated scalars the last wins; pieces are UTF-8
             without NUL, non-empty and distinct
    Raises:  FormatError for damage; UnsupportedError for settings that decoding does not know
    """
    parts = _parse(data, where)
    raw = array("f")
    raw.frombytes(b"".join(parts.scores))
    if struct.pack("=I", 1) != struct.pack("<I", 1):
        raw.byteswap()
    vocab = Vocabulary(parts.pieces, raw, bytes(parts.types))
    check_vocabulary(vocab, where)
    _check_pieces(vocab, where)
    _check_specs(parts, where)
    surface = parts.trainer.get(44, " \u2047 ".encode())
    # remove_extra_whitespaces also makes the library drop the first space
    strips = bool(parts.normalizer.get(3, 1)) or bool(parts.normalizer.get(4, 1))
    return SpmModel(vocab, strips, surface if isinstance(surface, bytes) else b"")


def _check_pieces(vocab: Vocabulary, where: str) -> None:
    if b"" in vocab.pieces:
        raise FormatError(f"{where}: piece {vocab.pieces.index(b'')} is empty")
    if len(set(vocab.pieces)) != len(vocab.pieces):
        seen: set[bytes] = set()
        for i, piece in enumerate(vocab.pieces):
            if piece in seen:
                raise FormatError(f"{where}: piece {i} repeats an earlier one: {piece[:32]!r}")
            seen.add(piece)
    for i, piece in enumerate(vocab.pieces):
        if 0 in piece:
            raise FormatError(f"{where}: piece {i} holds a NUL byte")
    n_unknown = vocab.types.count(UNKNOWN)
    if n_unknown != 1:
        raise FormatError(f"{where}: {n_unknown} unknown pieces, expected exactly one")


def _check_specs(parts: _Parts, where: str) -> None:
    if not parts.trainer or not parts.normalizer:  # every writer puts both behind the pieces
        raise FormatError(f"{where}: trainer or normaliser settings are missing behind "
                          f"{len(parts.pieces)} pieces; the file is truncated")  # fmt: skip
    model_type = parts.trainer.get(3, 1)
    if model_type not in _MODEL_TYPES:
        raise FormatError(f"{where}: model type {model_type!r}, expected 1 to 4")
    if parts.trainer.get(24, 0):
        raise UnsupportedError(f"{where}: spaces behind words (treat_whitespace_as_suffix)")
    if parts.denormalizer.get(2):
        raise UnsupportedError(f"{where}: a denormalizer; use a model without one")
    for spec in (parts.trainer, parts.normalizer, parts.denormalizer):
        charsmap = spec.get(2, b"") if spec is not parts.trainer else b""
        if charsmap:
            assert isinstance(charsmap, bytes)
            check_charsmap(charsmap, where)


def check_charsmap(blob: bytes, where: str) -> None:
    """Walk every unit of a normaliser's trie, so that no lookup can leave the blob.

    Notes:   u32 trie size, the trie as u32 units (darts-clone), then NUL-ended replacements
    Raises:  FormatError if a child or a replacement lies outside
    """
    import numpy as np

    trie_bytes = int.from_bytes(blob[:4], "little")
    texts = blob[4 + trie_bytes :]
    if len(blob) < 8 or trie_bytes < 4 or trie_bytes % 4 or not texts or texts[-1]:
        raise FormatError(f"{where}: precompiled_charsmap of {len(blob)} bytes is cut or damaged")
    units = np.frombuffer(blob, "<u4", trie_bytes // 4, 4).astype(np.int64)
    inner = np.flatnonzero(units < 2**31)
    offset = (units[inner] >> 10) << ((units[inner] & 0x200) >> 6)
    child = inner ^ offset
    if ((child | 0xFF) >= units.size).any():
        raise FormatError(f"{where}: precompiled_charsmap points outside its trie")
    with_value = child[(units[inner] & 0x100) != 0]
    if ((units[with_value] & 0x7FFFFFFF) >= len(texts)).any():
        raise FormatError(f"{where}: precompiled_charsmap points outside its replacements")


def _parse(data: bytes, where: str) -> _Parts:
    parts = _Parts()
    specs = {2: parts.trainer, 3: parts.normalizer, 5: parts.denormalizer}
    for number, value in _fields(data, where):
        if number == 1:
            _add_piece(parts, _bytes(value, where), where)
        elif number in specs:
            _read_spec(specs[number], _bytes(value, where), where)
    return parts


def _read_spec(spec: dict[int, Value], body: bytes, where: str) -> None:
    spec.update(_fields(body, where))


def _add_piece(parts: _Parts, body: bytes, where: str) -> None:
    if len(parts.pieces) >= MAX_PIECES:
        raise FormatError(f"{where}: more than {MAX_PIECES} pieces")
    piece, score, kind = b"", bytes(4), NORMAL
    # the order in which every writer puts them: text, score, and the type if it is not NORMAL
    n_text = body[1] if len(body) > 1 else 0
    rest = body[2 + n_text :]
    if body[0:1] == b"\x0a" and n_text < 0x80 and len(rest) == 5 and rest[0] == 0x15:
        piece, score = body[2 : 2 + n_text], rest[1:]
    else:
        for number, value in _fields(body, where):
            if number == 1:
                piece = _bytes(value, where)
            elif number == 2:
                score = _bytes(value, where, 4)
            elif number == 3:
                kind = value if isinstance(value, int) and value < 256 else 255
    parts.pieces.append(piece)
    parts.scores.append(score)
    parts.types.append(kind)


def _bytes(value: Value, where: str, n_bytes: int | None = None) -> bytes:
    if not isinstance(value, bytes) or (n_bytes is not None and len(value) != n_bytes):
        raise FormatError(f"{where}: a field has the wrong wire type; the file is damaged")
    return value


def _fields(data: bytes, where: str) -> Iterator[tuple[int, Value]]:
    """Field numbers and values of one message; nothing is nested here, so nothing recurses."""
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
