"""llama2.c's tokenizer.bin, in both spellings of the byte pieces."""

from __future__ import annotations

import math
import struct

from rllama.config import TokenizerSource
from rllama.errors import FormatError
from rllama.formats.files import printable, read_small

LIMIT_BYTES = 64 << 20
_MAX_PIECE_BYTES = 65536
_MAX_PIECES = 1 << 22
_RECORD = struct.Struct("<fi")
_UNK, _BOS, _EOS, _FIRST_BYTE = 0, 1, 2, 3
_NAMES = {"\n<s>\n": "<s>", "\n</s>\n": "</s>"}


def read_llama2c_tokenizer(path: str) -> TokenizerSource:
    """The vocabulary of a tokenizer.bin.

    Notes:   u32 longest piece, then f32 score, i32 length, bytes for each; ids 0 to 2 are unknown,
             BOS and EOS; ids 3 to 258 are the 256 bytes, spelled `<0x0A>` or as the character
             U+000A; spaces become U+2581 again
    Raises:  FormatError if it is anything else, or damaged
    """
    where = printable(path)
    raw, scores = _records(read_small(path, LIMIT_BYTES), where)
    pieces = [_text(piece, where, index) for index, piece in enumerate(raw)]
    if pieces[_FIRST_BYTE : _FIRST_BYTE + 1] == ["\0"]:
        _respell_bytes(pieces, where)
    count = len(pieces)
    return TokenizerSource(
        kind="vocab", path=path, scores=tuple(scores), add_bos=True,
        pieces=tuple(_NAMES.get(piece, piece).replace(" ", "\u2581") for piece in pieces),
        bos_token_id=_BOS if count > _BOS else None, eos_token_id=_EOS if count > _EOS else None,
        unk_token_id=_UNK,
    )  # fmt: skip


def _records(data: bytes, where: str) -> tuple[list[bytes], list[float]]:
    """Pieces and scores as they lie in the file, walked to its end."""
    if len(data) < 4 + _RECORD.size:
        raise FormatError(f"{where}: {len(data)} bytes are too few for a tokenizer")
    longest = int.from_bytes(data[:4], "little")
    if not 1 <= longest <= _MAX_PIECE_BYTES:
        raise FormatError(
            f"{where}: not a known tokenizer; as a llama2.c tokenizer its longest piece, at offset "
            f"0, would have {longest} bytes (1 to {_MAX_PIECE_BYTES} are possible)"
        )
    pieces: list[bytes] = []
    scores: list[float] = []
    unpack, finite, at, end = _RECORD.unpack_from, math.isfinite, 4, len(data)
    while at < end:
        if at + 8 > end or len(pieces) == _MAX_PIECES:
            problem = "is cut off" if at + 8 > end else f"is one more than {_MAX_PIECES}"
            raise FormatError(f"{where}: piece {len(pieces)} at offset {at} {problem}")
        score, length = unpack(data, at)
        if not 0 <= length <= longest or not finite(score) or at + 8 + length > end:
            raise FormatError(
                f"{where}: piece {len(pieces)} at offset {at}: length {length} and score {score:g} "
                f"are impossible (longest piece {longest}, file {end} bytes)"
            )
        at += 8
        pieces.append(data[at : at + length])
        scores.append(score)
        at += length
    return pieces, scores


def _text(piece: bytes, where: str, index: int) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        raise FormatError(f"{where}: piece {index} is not UTF-8: {piece[:32]!r}") from None


def _respell_bytes(pieces: list[str], where: str) -> None:
    for value in range(256):
        index = _FIRST_BYTE + value
        if index >= len(pieces) or pieces[index] != chr(value):
            raise FormatError(
                f"{where}: piece {index} should be the byte {value:02X} as a character"
            )
        pieces[index] = f"<0x{value:02X}>"
