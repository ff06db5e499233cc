"""Reads a SentencePiece .model and checks it before the library sees a byte of it."""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, field

from rllama.errors import FormatError, UnsupportedError
from rllama.tokenizers.charsmap import check_charsmap
from rllama.tokenizers.protobuf import fields
from rllama.tokenizers.vocabulary import (
    DEFAULT_UNK_SURFACE,
    MAX_PIECES,
    NORMAL,
    UNKNOWN,
    Vocabulary,
    check_vocabulary,
)

_MODEL_TYPES = (1, 2, 3, 4)  # unigram, BPE, word, char
# the settings that are looked at: field number to wire type (0 number, 2 bytes)
_MODEL_TYPE, _SPACE_BEHIND, _UNK_SURFACE = 3, 24, 44
_TRAINER = {_MODEL_TYPE: 0, _SPACE_BEHIND: 0, _UNK_SURFACE: 2}
_CHARSMAP, _ADD_PREFIX, _REMOVE_EXTRA = 2, 3, 4
_NORMALIZER = {_CHARSMAP: 2, _ADD_PREFIX: 0, _REMOVE_EXTRA: 0}
_PIECE = {1: 2, 2: 5, 3: 0}  # text, score, type
_MODEL = {1: 2, 2: 2, 3: 2, 5: 2}  # piece, trainer, normalizer, denormalizer


@dataclass(slots=True)
class SpmModel:
    """What a ModelProto says that matters here."""

    vocab: Vocabulary
    strips_space: bool
    unk_surface: bytes


@dataclass(slots=True)
class _Settings:
    """Fields of one settings message, the last value of each."""

    kinds: dict[int, int]
    present: bool = False
    numbers: dict[int, int] = field(default_factory=dict)
    texts: dict[int, bytes] = field(default_factory=dict)

    def read(self, body: bytes, where: str) -> None:
        self.present = True
        for number, value in fields(body, self.kinds, where):
            if isinstance(value, int):
                self.numbers[number] = value
            else:
                self.texts[number] = value


@dataclass(slots=True)
class _Parts:
    """What is gathered while a ModelProto is walked."""

    pieces: list[bytes] = field(default_factory=list)
    scores: list[bytes] = field(default_factory=list)
    types: bytearray = field(default_factory=bytearray)
    trainer: _Settings = field(default_factory=lambda: _Settings(_TRAINER))
    normalizer: _Settings = field(default_factory=lambda: _Settings(_NORMALIZER))
    denormalizer: _Settings = field(default_factory=lambda: _Settings(_NORMALIZER))


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
    settings = parts.normalizer.numbers
    # where extra spaces are removed, the library also drops the first one
    strips = bool(settings.get(_ADD_PREFIX, 1) or settings.get(_REMOVE_EXTRA, 1))
    surface = parts.trainer.texts.get(_UNK_SURFACE, DEFAULT_UNK_SURFACE)
    return SpmModel(vocab, strips, surface)


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
    if not (
        parts.trainer.present and parts.normalizer.present
    ):  # every writer puts both behind the pieces
        raise FormatError(f"{where}: trainer or normaliser settings are missing behind "
                          f"{len(parts.pieces)} pieces; the file is truncated")  # fmt: skip
    model_type = parts.trainer.numbers.get(_MODEL_TYPE, 1)
    if model_type not in _MODEL_TYPES:
        raise FormatError(f"{where}: model type {model_type!r}, expected 1 to 4")
    if parts.trainer.numbers.get(_SPACE_BEHIND):
        raise UnsupportedError(f"{where}: spaces behind words (treat_whitespace_as_suffix)")
    if parts.denormalizer.texts.get(_CHARSMAP):
        raise UnsupportedError(f"{where}: a denormalizer; use a model without one")
    charsmap = parts.normalizer.texts.get(_CHARSMAP)
    if charsmap:
        check_charsmap(charsmap, where)


def _parse(data: bytes, where: str) -> _Parts:
    parts = _Parts()
    specs = {2: parts.trainer, 3: parts.normalizer, 5: parts.denormalizer}
    for number, value in fields(data, _MODEL, where):
        assert isinstance(value, bytes)
        if number == 1:
            _add_piece(parts, value, where)
        else:
            specs[number].read(value, where)
    return parts


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
        for number, value in fields(body, _PIECE, where):
            if isinstance(value, int):
                kind = min(value, 255)
            elif number == 1:
                piece = value
            else:
                score = value
    parts.pieces.append(piece)
    parts.scores.append(score)
    parts.types.append(kind)
