"""Tokenizer rows of the corpus of bad files: SentencePiece, tiktoken, tokenizer.bin."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from pathlib import Path

from hostile_case import Case
from hostile_llama2c import GOOD_TOKENIZER

from rllama.errors import FormatError, UnsupportedError
from rllama.tokenizers.protobuf import message

Error = type[Exception] | None


def cases() -> Iterator[Case]:
    """All cases of these files."""
    for part in (_tiktoken, _spm, _llama2c):
        yield from part()


def blob(row: str, variant: str, data: bytes, error: Error, says: str) -> Case:
    def make(folder: Path) -> Path:
        path = folder / "tokenizer.any"
        path.write_bytes(data)
        return path

    return Case(row, variant, make, error, says)


def charsmaps() -> Iterator[bytes]:
    """Tables that are cut, or whose trie leads outside."""
    yield from (bytes(n) for n in (1, 2, 3))
    yield from (
        struct.pack("<II", 4, 0),  # no replacements
        struct.pack("<II", 2**31, 0) + b"\0",  # a trie beyond the end
        struct.pack("<II", 4, 0x7FFFFC00) + b"a\0",  # a child outside
        struct.pack("<I", 3) + b"abcd\0",  # half a unit
        struct.pack("<I", 1024) + bytes(1024) + b"\xff\0",  # a text that is not UTF-8
    )


def _tiktoken() -> Iterator[Case]:
    lines = [base64.b64encode(bytes((v,))) + b" %d" % v for v in range(256)]

    def with_line(i: int, line: bytes) -> bytes:
        return b"\n".join([*lines[:i], line, *lines[i + 1 :]])

    wrong = {
        "bad_base64": (b"!!!! 7", "no base64"), "padding": (b"QQ 7", "no base64"),
        "twin_rank": (b"QkI= 6", "rank 6, expected 7"), "gap": (b"QkI= 8", "rank 8, expected 7"),
        "twin_token": (b"AQ== 7", "repeats a token"), "no_rank": (b"QkI=", "has the rank ,"),
        "word_rank": (b"QkI= seven", "rank seven"), "minus": (b"QkI= -7", "rank -7"),
        "huge": (b"QkI= " + b"9" * 5000, "rank 999"), "empty": (b"", "has the rank ,"),
        "nul": (b"QkI=\0 7", "no base64"), "long": (b"QUFB" * 40_000 + b" 7", "120000 bytes"),
    }  # fmt: skip
    for name, (line, says) in wrong.items():
        yield blob("K9", f"tiktoken_{name}", with_line(7, line), FormatError, says)
    data = b"\n".join(lines) + b"\n"
    yield blob("K9", "tiktoken_size", data, UnsupportedError, "a tiktoken file of 256 tokens")
    yield blob(
        "K9", "tiktoken_crlf", data.replace(b"\n", b"\r\n"), UnsupportedError, "of 256 tokens"
    )
    yield blob("K9", "tiktoken_cut", data[:-3], FormatError, "rank|base64")


def _spm() -> Iterator[Case]:
    piece = b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02"
    tail = b"\x12\x02\x18\x02\x1a\x02\x18\x00"
    tries = {
        "K1-varint": (piece + b"\x0a" + b"\xff" * 11, "10 bytes"),
        "K1-length": (piece + b"\x0a\xff\xff\xff\x7fabc", "are left"),
        "K1-group": (piece + b"\x0b", "wire type 3"),
        "K1-field_0": (piece + b"\x02\x01a", "field 0"),
        "K1-tag_only": (piece + b"\x0a", "cut off"), "K6-no_settings": (piece, "missing behind"),
        "K6-two_unk": (piece * 2 + tail, "repeats|2 unknown"),
        "K6-type_99": (piece[:-1] + b"\x63" + tail, "type 99"),
        "K7-nan": (piece.replace(b"\x15\0\0\0\0", b"\x15\0\0\xc0\x7f") + tail, "score nan"),
        "K7-inf": (piece.replace(b"\x15\0\0\0\0", b"\x15\0\0\x80\x7f") + tail, "score inf"),
        "K2-deep": (piece + _deep_field(), "missing behind"),
        "K4-nul": (piece + _spm_piece(b"a\0b") + tail, "NUL"),
        "K4-empty": (piece + _spm_piece(b"") + tail, "empty"),
        "K4-surrogate": (piece + _spm_piece(b"\xed\xa0\x80") + tail, "UTF-8"),
        "K6-no_pieces": (tail * 4, "not a known tokenizer"),
        "K6-no_unknown": (_spm_piece(b"a") + tail, "0 unknown"),
        "K7-large": (piece.replace(b"\x15\0\0\0\0", b"\x15\x99\x76\x96\x7e") + tail, "score 9"),
    }  # fmt: skip
    for name, (data, says) in tries.items():
        row, _, variant = name.partition("-")
        yield blob(row, f"spm_{variant}", data, FormatError, says)
    for n_bytes in (65537, 200_000, 4_000_000):
        data = piece + _spm_piece(b"a" * n_bytes) + tail
        yield blob("K3", f"spm_{n_bytes}", data, FormatError, f"has {n_bytes} bytes")
    unknown_fields = _spm_piece(b"a") + b"\x82\x7d\x03abc" + tail
    yield blob("K2", "spm_unknown_fields", piece + unknown_fields, None, "")
    twice = _spm_piece(b"a", b"\x0a\x01b\x15\0\0\x80\xbf")  # of repeated fields the last counts
    yield blob("K2", "spm_repeated_fields", piece + twice + tail, None, "")
    for i, charsmap in enumerate(charsmaps()):
        settings = b"\x12\x02\x18\x02" + message(3, message(1, b"x") + message(2, charsmap))
        data = piece + _spm_piece(b"a") + settings
        yield blob("K5", f"spm_{i}", data, FormatError, "precompiled_charsmap")


def _spm_piece(text: bytes, more: bytes = b"") -> bytes:
    return message(1, message(1, text) + b"\x15\0\0\0\0" + more)


def _llama2c() -> Iterator[Case]:
    def with_piece(index: int, piece: bytes) -> bytes:
        data, at, found = GOOD_TOKENIZER, 4, GOOD_TOKENIZER[:4]
        for i in range(262):
            (length,) = struct.unpack_from("<i", data, at + 4)
            text = piece if i == index else data[at + 8 : at + 8 + length]
            found += data[at : at + 4] + struct.pack("<i", len(text)) + text
            at += 8 + length
        return found

    for name, index, piece, error, says in (
        ("no_byte", 10, b"zz", FormatError, "<0x07> is missing"),
        ("twin_byte", 10, b"<0x00>", FormatError, "second piece for one byte"),
        ("not_utf8", 260, b"\xff", FormatError, "not UTF-8"),
        ("nul", 260, b"a\0", FormatError, "null character"),
        ("empty", 260, b"", None, ""),
        ("twin", 260, b"<s>", None, ""),
    ):
        yield blob("L10", f"piece_{name}", with_piece(index, piece), error, says)


def _deep_field() -> bytes:
    body = b""
    for _ in range(2000):
        n = len(body)
        size = bytes((n & 0x7F | 0x80, n >> 7)) if n > 0x7F else bytes((n,))
        body = b"\x7a" + size + body
        if len(body) > 16_000:
            break
    return body
