"""Reads llama2.c's tokenizer.bin, in both spellings of the byte pieces."""

from __future__ import annotations

import struct

from rllama.errors import FormatError
from rllama.tokenizers.vocabulary import (
    MAX_PIECE_BYTES,
    MAX_PIECES,
    SPACE,
    Vocabulary,
    check_vocabulary,
    guess_types,
)

BOS, EOS, UNK = 1, 2, 0
_FIRST_BYTE = 3
_ENTRY = struct.Struct("<fi")
_NAMES = {b"\n<s>\n": b"<s>", b"\n</s>\n": b"</s>"}


def looks_like_llama2c(head: bytes) -> bool:
    """Whether the first bytes of a file read as a tokenizer.bin."""
    max_bytes = int.from_bytes(head[:4], "little")
    if not 0 < max_bytes <= MAX_PIECE_BYTES:
        return False
    pos, n_seen = 4, 0
    while pos + _ENTRY.size <= len(head) and n_seen < 4:
        score, n_bytes = _ENTRY.unpack_from(head, pos)
        if not (0 <= n_bytes <= max_bytes and abs(score) < 1e18):
            return False
        pos += _ENTRY.size + n_bytes
        n_seen += 1
    return n_seen > 0


def read_llama2c(data: bytes, where: str, vocab_size: int | None = None) -> Vocabulary:
    """The vocabulary of a tokenizer.bin.

    Notes:   u32 longest piece, then f32 score, i32 length, bytes for each; ids 0 to 2 are unknown,
             BOS and EOS; ids 3 to 258 are the 256 bytes, spelled `<0x0A>` or as the character
             U+000A; spaces become U+2581 again
    Raises:  FormatError for a length that is negative, above the header's or beyond the file, for
             a count other than vocab_size (where given), and what check_vocabulary refuses
    """
    pieces, scores = _entries(data, where)
    if vocab_size is not None and len(pieces) != vocab_size:
        raise FormatError(f"{where}: {len(pieces)} pieces for a model with {vocab_size}: "
                          "not this model's tokenizer")  # fmt: skip
    if len(pieces) > _FIRST_BYTE and pieces[_FIRST_BYTE] == b"\0":
        _respell_bytes(pieces, where)
    pieces = [_NAMES.get(piece, piece).replace(b" ", SPACE) for piece in pieces]
    vocab = Vocabulary(pieces, scores, guess_types(pieces, UNK, (BOS, EOS)))
    check_vocabulary(vocab, where)
    return vocab


def _entries(data: bytes, where: str) -> tuple[list[bytes], list[float]]:
    if len(data) < 4:
        raise FormatError(f"{where}: {len(data)} bytes; the file is truncated")
    max_bytes, end = int.from_bytes(data[:4], "little"), len(data)
    if not 0 < max_bytes <= MAX_PIECE_BYTES:
        raise FormatError(f"{where}: longest piece {max_bytes} bytes, "
                          f"expected 1 to {MAX_PIECE_BYTES}")  # fmt: skip
    pieces: list[bytes] = []
    scores: list[float] = []
    pos = 4
    while pos < end:
        if end - pos < _ENTRY.size:
            raise FormatError(f"{where}: cut off after piece {len(pieces) - 1}")
        score, n_bytes = _ENTRY.unpack_from(data, pos)
        pos += _ENTRY.size
        if not 0 <= n_bytes <= min(max_bytes, end - pos):
            raise FormatError(f"{where}: piece {len(pieces)} at offset {pos - 8} has {n_bytes} "
                              f"bytes, expected 0 to {max_bytes}, {end - pos} left")  # fmt: skip
        if len(pieces) == MAX_PIECES:
            raise FormatError(f"{where}: more than {MAX_PIECES} pieces")
        pieces.append(data[pos : pos + n_bytes])
        scores.append(score)
        pos += n_bytes
    return pieces, scores


def _respell_bytes(pieces: list[bytes], where: str) -> None:
    for value in range(256):
        i = _FIRST_BYTE + value
        if i >= len(pieces) or pieces[i] != chr(value).encode():
            raise FormatError(f"{where}: piece {i} should be the byte {value:02X} as a character")
        pieces[i] = b"<0x%02X>" % value
