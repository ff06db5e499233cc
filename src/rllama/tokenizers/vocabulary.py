"""A vocabulary as plain data: pieces, scores and types, and what must hold for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rllama.config import TokenizerSource
from rllama.errors import FormatError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581".encode()  # stands for a space inside pieces
DEFAULT_UNK_SURFACE = " \u2047 ".encode()  # what the library shows for an unknown piece
MAX_PIECES = 2**22
MAX_PIECE_BYTES = 2**16
_MAX_SCORE = 1e18
_BYTE_PIECE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


@dataclass(slots=True)
class Vocabulary:
    """Pieces in id order.

    Shapes:  pieces, scores and types have one entry per id
    Notes:   pieces are UTF-8 with U+2581 for a space; types are SentencePiece's 1 to 6
    """

    pieces: list[bytes]
    scores: Sequence[float]
    types: bytes


def byte_value(piece: bytes) -> int | None:
    """The value of a byte piece such as `<0x0A>`, or None."""
    match = _BYTE_PIECE.fullmatch(piece)
    return int(match[1], 16) if match else None


def check_vocabulary(vocab: Vocabulary, where: str) -> None:
    """Refuse what no tokenizer can work with.

    Raises:  FormatError for no or too many pieces, a piece that is too long or not UTF-8, an
             unknown type, a score that is not a number of sane size, broken byte pieces
    """
    n_pieces = len(vocab.pieces)
    if not 0 < n_pieces <= MAX_PIECES:
        raise FormatError(f"{where}: {n_pieces} pieces, expected 1 to {MAX_PIECES}")
    for i, score in enumerate(vocab.scores):
        if not -_MAX_SCORE < score < _MAX_SCORE:  # false for NaN too
            raise FormatError(f"{where}: piece {i} has score {score}, expected a finite number")
    if vocab.types.translate(None, b"\1\2\3\4\5\6"):
        i = next(i for i, kind in enumerate(vocab.types) if not NORMAL <= kind <= BYTE)
        raise FormatError(f"{where}: piece {i} has type {vocab.types[i]}, expected 1 to 6")
    if len(max(vocab.pieces, key=len)) > MAX_PIECE_BYTES:
        i = next(i for i, p in enumerate(vocab.pieces) if len(p) > MAX_PIECE_BYTES)
        raise FormatError(f"{where}: piece {i} has {len(vocab.pieces[i])} bytes, "
                          f"at most {MAX_PIECE_BYTES} are allowed")  # fmt: skip
    _check_utf8(vocab.pieces, where)
    _check_byte_pieces(vocab, where)


def _check_utf8(pieces: list[bytes], where: str) -> None:
    try:
        b"\0".join(pieces).decode()  # one call for all; NUL cannot complete a character
    except UnicodeDecodeError:
        for i, piece in enumerate(pieces):
            try:
                piece.decode()
            except UnicodeDecodeError:
                raise FormatError(f"{where}: piece {i} is not UTF-8: {piece[:32]!r}") from None


def _check_byte_pieces(vocab: Vocabulary, where: str) -> None:
    seen: set[int] = set()
    start = vocab.types.find(BYTE)
    while start >= 0:
        value = byte_value(vocab.pieces[start])
        if value is None or value in seen:
            what = "a second piece for one byte" if value in seen else "no byte from 00 to FF"
            raise FormatError(f"{where}: byte piece {start}, "
                              f"{vocab.pieces[start][:32]!r}, is {what}")  # fmt: skip
        seen.add(value)
        start = vocab.types.find(BYTE, start + 1)
    if 0 < len(seen) < 256:
        missing = min(set(range(256)) - seen)
        raise FormatError(f"{where}: {len(seen)} of the 256 byte pieces are there, "
                          f"<0x{missing:02X}> is missing")  # fmt: skip


def guess_types(pieces: Sequence[bytes], unk: int | None, control: Sequence[int]) -> bytes:
    """Types for a file that stores none: byte pieces by their spelling, specials by their id."""
    types = bytearray(BYTE if byte_value(p) is not None else NORMAL for p in pieces)
    for token_id in control:
        if token_id < len(types):
            types[token_id] = CONTROL
    if unk is not None and unk < len(types):
        types[unk] = UNKNOWN
    return bytes(types)


def vocabulary_of(source: TokenizerSource, where: str) -> Vocabulary:
    """The vocabulary of a source of kind "vocab".

    Raises:  FormatError if the lists do not have one entry per piece, or a value is out of range
    """
    n_pieces = len(source.pieces)
    for name, values in (("scores", source.scores), ("types", source.types)):
        if len(values) != n_pieces and (values or name == "scores"):
            raise FormatError(f"{where}: {len(values)} {name} for {n_pieces} pieces")
    try:
        pieces = [piece.encode() for piece in source.pieces]
    except UnicodeEncodeError as error:
        raise FormatError(f"{where}: a piece is not Unicode text: {error.object!r:.40}") from None
    named = (source.bos_token_id, source.eos_token_id, source.unk_token_id)
    for token_id in named:
        if token_id is not None and not 0 <= token_id < n_pieces:
            raise FormatError(f"{where}: special token id {token_id} is outside the "
                              f"{n_pieces} pieces")  # fmt: skip
    control = [i for i in named[:2] if i is not None]
    try:
        types = bytes(source.types) or guess_types(pieces, source.unk_token_id, control)
    except ValueError:
        raise FormatError(f"{where}: a piece type is outside 1 to 6") from None
    return Vocabulary(pieces, source.scores, types)
