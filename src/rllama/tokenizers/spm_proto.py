"""Writes a SentencePiece ModelProto for a vocabulary that came without one."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from rllama.errors import FormatError
from rllama.tokenizers.protobuf import message, number, varint
from rllama.tokenizers.vocabulary import BYTE, CONTROL, SPACE, UNKNOWN, USER_DEFINED, Vocabulary


class _Heads(dict[int, bytes]):
    """The bytes in front of a piece, by the piece's length."""

    def __missing__(self, n_bytes: int) -> bytes:
        inner = b"\x0a" + varint(n_bytes)
        self[n_bytes] = b"\x0a" + varint(len(inner) + n_bytes + 7) + inner
        return self[n_bytes]


@dataclass(frozen=True, slots=True)
class Rules:
    """How a vocabulary is used: the algorithm, and what happens to a text before."""

    add_space_prefix: bool = True
    is_unigram: bool = False
    charsmap: bytes = b""
    remove_extra_whitespaces: bool = False


def model_proto(vocab: Vocabulary, rules: Rules) -> bytes:
    """A ModelProto with byte fallback where there are byte pieces.

    Notes:   `vocab` must be as `producible` returns it
    """
    heads = _Heads()
    scores = struct.iter_unpack("4s", struct.pack(f"<{len(vocab.scores)}f", *vocab.scores))
    tails = [b"\x18" + bytes((kind,)) for kind in range(7)]
    body = [
        heads[len(piece)] + piece + b"\x15" + score + tails[kind]
        for piece, (score,), kind in zip(vocab.pieces, scores, vocab.types, strict=True)
    ]
    trainer = (
        number(3, 1 if rules.is_unigram else 2)
        + number(4, len(body))
        + number(35, int(BYTE in vocab.types))
    )
    normalizer = message(1, b"identity") + (message(2, rules.charsmap) if rules.charsmap else b"")
    normalizer += number(3, int(rules.add_space_prefix))
    normalizer += number(4, int(rules.remove_extra_whitespaces)) + number(5, 1)
    return b"".join((*body, message(2, trainer), message(3, normalizer)))


def producible(vocab: Vocabulary, unk: int | None, where: str) -> Vocabulary:
    """The vocabulary with everything renamed that the library would trip over.

    Notes:   an empty piece and the second of two equal ones keep their id, but get a name that
             text never matches: they can be decoded, not encoded; likewise all UNKNOWN pieces but
             one; where there is none, one is added behind the last id
    Raises:  FormatError if there is neither an unknown piece nor byte pieces, or a user-defined
             piece holds NUL
    """
    pieces, scores = list(vocab.pieces), list(vocab.scores)
    types = bytearray(vocab.types)
    if USER_DEFINED in types:
        _spell_spaces(pieces, types, where)
    unknowns = [i for i, kind in enumerate(types) if kind == UNKNOWN]
    if unk is None or types[unk] == BYTE:
        unk = unknowns[0] if unknowns else None
    for i in unknowns:
        types[i] = CONTROL
    if unk is not None:
        types[unk] = UNKNOWN
    elif BYTE in types:
        pieces.append(b"<unk:added>")
        scores.append(0.0)
        types.append(UNKNOWN)
    else:
        raise FormatError(f"{where}: no unknown piece and no byte pieces: most text has no ids")
    if BYTE in types:
        pieces = [p.upper().replace(b"X", b"x") if kind == BYTE else p
                  for p, kind in zip(pieces, types, strict=True)]  # fmt: skip
    if len(set(pieces)) != len(pieces) or b"" in pieces:
        _rename_twins(pieces, types)
    return Vocabulary(pieces, scores, bytes(types))


def _spell_spaces(pieces: list[bytes], types: Sequence[int], where: str) -> None:
    for i, kind in enumerate(types):
        if kind == USER_DEFINED:
            if 0 in pieces[i]:  # the library's trie of these ends names at NUL
                raise FormatError(f"{where}: user-defined piece {i} holds a NUL byte")
            pieces[i] = pieces[i].replace(b" ", SPACE)


def _rename_twins(pieces: list[bytes], types: bytearray) -> None:
    first: dict[bytes, int] = {}
    for i, piece in enumerate(pieces):
        # a byte or unknown piece keeps its name whatever else is spelled like it
        if piece not in first or types[i] in (BYTE, UNKNOWN):
            first[piece] = i
    taken = set(first)
    for i, piece in enumerate(pieces):
        if piece and first[piece] == i:
            continue
        name = b"<twin:%d>" % i
        while name in taken:
            name += b">"
        taken.add(name)
        pieces[i] = name
        if types[i] != UNKNOWN:
            types[i] = CONTROL
