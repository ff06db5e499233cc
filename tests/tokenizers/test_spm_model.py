"""Damaged and lying SentencePiece models: one clear line, never the library's business."""

from __future__ import annotations

import contextlib
import math
import random
import struct
from collections.abc import Callable

import numpy as np
import pytest

from rllama.config import TokenizerSource
from rllama.errors import FormatError, RllamaError, UnsupportedError
from rllama.tokenizers import load_tokenizer
from rllama.tokenizers.protobuf import message, number, varint
from rllama.tokenizers.spm_model import read_spm_model


def piece(
    text: bytes, score: float | bytes = 0.0, kind: int | None = None, extra: bytes = b""
) -> bytes:
    raw = score if isinstance(score, bytes) else struct.pack("<f", score)
    tail = b"" if kind is None else number(3, kind)
    return message(1, message(1, text) + b"\x15" + raw + tail + extra)


BASE = piece(b"<unk>", kind=2) + piece(b"a", -1.0) + piece("\u2581".encode(), -2.0)
SPECS = message(2, number(3, 2)) + message(3, message(1, b"identity") + number(4, 0))
GOOD = BASE + SPECS


def refused(data: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        read_spm_model(data, "some.model")
    text = str(caught.value)
    assert text.startswith("some.model: ")
    assert "\n" not in text
    assert len(text) < 300
    return text


def encodes(data: bytes, text: str = "aa a") -> list[int]:
    return load_tokenizer(TokenizerSource(kind="spm", model=data)).encode(text)


def test_the_base_of_these_tests_is_good() -> None:
    assert encodes(GOOD) == [2, 1, 1, 2, 1]


@pytest.mark.parametrize(
    ("tail", "says"),
    [
        (b"\x30" + b"\xff" * 10 + b"\x01", "more than 10 bytes"),
        (b"\xff" * 11 + b"\x01", "more than 10 bytes"),
        (b"\x32\x7f", "127 bytes where 0 are left"),
        (b"\x32" + varint(2**63) + b"x", "where 1 are left"),
        (b"\x31\0\0", "8 bytes where 2"),
        (b"\x35\0\0", "4 bytes where 2"),
        (b"\x33\x34", "wire type 3"),
        (b"\x34", "wire type 4"),
        (b"\x36", "wire type 6"),
        (b"\x37", "wire type 7"),
        (b"\x02\x01x", "field 0"),
        (b"\x00\x01", "field 0"),
        (varint(2**32 << 3) + b"\x01", "field 4294967296"),
        (b"\x30", "cut off"),
        (b"\x80", "cut off"),
        (b"\x08\x01", "wire type"),
        (b"\x10\x01", "wire type"),
    ],
)
def test_damaged_protobuf_is_refused(tail: bytes, says: str) -> None:
    assert says in refused(GOOD + tail)


def test_every_cut_of_a_model_is_refused(model_bytes: bytes) -> None:
    whole = read_spm_model(model_bytes, "some.model")
    for n_bytes in [*range(60), *range(60, len(model_bytes), 7)]:
        try:
            cut = read_spm_model(model_bytes[:n_bytes], "some.model")
        except FormatError:
            refused(model_bytes[:n_bytes])
        else:
            assert cut == whole, n_bytes  # only an empty last section may be missing
            assert n_bytes > len(model_bytes) - 9


def test_unknown_fields_are_skipped() -> None:
    extra = number(2000, 7) + message(201, b"\xff" * 300) + b"\x99\x06" + b"x" * 8
    data = piece(b"<unk>", kind=2, extra=extra) + GOOD[len(piece(b"<unk>", kind=2)) :] + extra
    assert encodes(data) == [2, 1, 1, 2, 1]


def test_of_repeated_scalars_the_last_counts() -> None:
    first = message(1, message(1, b"zz") + b"\x15\0\0\0\0" + number(3, 9) + message(1, b"<unk>")
                    + number(3, 2))  # fmt: skip
    data = first + GOOD[len(piece(b"<unk>", kind=2)) :]
    assert encodes(data) == [2, 1, 1, 2, 1]


def test_deep_nesting_does_not_recurse() -> None:
    nested = b""
    for _ in range(10_000):
        nested = message(6, nested)
    assert encodes(GOOD + nested) == [2, 1, 1, 2, 1]
    assert "wire type 3" in refused(GOOD + b"\x33" * 10_000)


@pytest.mark.parametrize("n_bytes", [2**16 + 1, 200_000, 4_000_000])
def test_huge_pieces_are_refused(n_bytes: int) -> None:
    assert str(n_bytes) in refused(BASE + piece(b"x" * n_bytes) + SPECS)


def test_the_longest_legal_piece_is_read() -> None:
    assert len(read_spm_model(BASE + piece(b"x" * 2**16) + SPECS, "m").vocab.pieces) == 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"a\0b", "NUL"),
        (b"\xed\xa0\x80", "not UTF-8"),
        (b"\xff", "not UTF-8"),
        (b"\xc3", "not UTF-8"),
        (b"", "empty"),
        (b"a", "repeats"),
    ],
)
def test_pieces_that_are_no_text_are_refused_by_index(text: bytes, says: str) -> None:
    said = refused(BASE + piece(text) + SPECS)
    assert says in said
    assert "piece 3" in said


def test_broken_characters_do_not_join_up_over_two_pieces() -> None:
    assert "piece 3 is not UTF-8" in refused(BASE + piece(b"\xc3") + piece(b"\xa9") + SPECS)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (SPECS, "0 pieces"),
        (b"", "0 pieces"),
        (BASE + piece(b"<u>", kind=2) + SPECS, "2 unknown pieces"),
        (piece(b"a") + SPECS, "0 unknown pieces"),
        (BASE + piece(b"b", kind=99) + SPECS, "type 99"),
        (BASE + piece(b"b", kind=0) + SPECS, "type 0"),
        (BASE + piece(b"b", kind=2**64 - 1) + SPECS, "type 255"),
        (BASE + piece(b"<0xZZ>", kind=6) + SPECS, "no byte"),
        (BASE + piece(b"<0x100>", kind=6) + SPECS, "no byte"),
        (BASE + piece(b"<0x-1>", kind=6) + SPECS, "no byte"),
        (BASE + piece(b"<0x0A>", kind=6) + SPECS, "1 of the 256"),
        (BASE + message(2, number(3, 77)) + message(3, number(4, 0)), "model type 77"),
        (BASE, "settings are missing"),
        (BASE + message(2, number(3, 2)), "settings are missing"),
    ],
)
def test_contradictions_are_refused(data: bytes, says: str) -> None:
    assert says in refused(data)


def test_too_many_pieces_are_refused_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rllama.tokenizers.spm_model.MAX_PIECES", 3)
    assert "more than 3 pieces" in refused(BASE + piece(b"b") + SPECS)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, 1e38, -1e38])
@pytest.mark.parametrize("kind", [None, 1, 4])
def test_scores_that_are_no_sane_number_are_refused(score: float, kind: int | None) -> None:
    assert "piece 3 has score" in refused(BASE + piece(b"b", score, kind) + SPECS)


def charsmap_model(charsmap: bytes) -> bytes:
    return BASE + message(2, number(3, 2)) + message(3, message(1, b"x") + message(2, charsmap))


@pytest.mark.parametrize(
    "charsmap",
    [
        b"\1", b"\1\2", b"\1\2\3", b"\0\0\0\0", b"\4\0\0\0\0\0\0\0",
        struct.pack("<I", 2**31) + b"\0" * 64,
        struct.pack("<I", 6) + b"\0" * 64,
        struct.pack("<I", 1024) + b"\0" * 1024 + b"abc",
        struct.pack("<I", 1024) + b"\0" * 1024,
    ],
)  # fmt: skip
def test_cut_charsmaps_are_refused(charsmap: bytes) -> None:
    assert "charsmap" in refused(charsmap_model(charsmap))


def test_charsmap_links_must_stay_inside() -> None:
    units = np.zeros(256, "<u4")
    units[0] = 1 << 10  # the root's children begin at 1, as in any real trie
    good = struct.pack("<I", 1024) + units.tobytes() + b"x\0"
    read_spm_model(charsmap_model(good), "m")
    units[0] = 300 << 10
    outside = struct.pack("<I", 1024) + units.tobytes() + b"x\0"
    assert "outside its trie" in refused(charsmap_model(outside))
    units[0] = 1 << 10 | 0x100  # the root has a value, unit 1 holds it
    units[1] = 2**31 | 2
    far = struct.pack("<I", 1024) + units.tobytes() + b"x\0"
    assert "outside its replacements" in refused(charsmap_model(far))


def test_settings_that_decoding_does_not_know_are_named(train_model: Callable[..., bytes]) -> None:
    with pytest.raises(UnsupportedError, match="whitespace_as_suffix"):
        read_spm_model(train_model(treat_whitespace_as_suffix=True), "m")
    with pytest.raises(UnsupportedError, match="denormalizer"):
        read_spm_model(GOOD + message(5, message(2, b"abcd")), "m")


@pytest.mark.parametrize(
    "data",
    [
        number(1, 5),
        GOOD + number(2, 5),
        message(1, number(1, 5)),
        message(1, message(1, b"a") + b"\x11" + bytes(8)),
        # a second charsmap that is no charsmap must not hide the first one
        charsmap_model(b"\1\2") + message(3, number(2, 0)),
        charsmap_model(b"\1\2") + message(3, b"\x11" + bytes(8)),
        GOOD + message(2, message(3, b"x")),
        GOOD + message(5, number(2, 1)),
    ],
)
def test_wrong_wire_types_are_refused(data: bytes) -> None:
    assert "wire type" in refused(data)


def test_random_damage_never_leaves_our_exceptions(
    model_bytes: bytes, train_model: Callable[..., bytes]
) -> None:
    from rllama.tokenizers.spm_load import load_spm

    rng = random.Random(11)
    originals = (model_bytes, train_model("unigram"))
    n_loaded = 0
    for _ in range(400):
        data = bytearray(rng.choice(originals))
        for _ in range(rng.choice((1, 1, 3, 9))):
            at = rng.randrange(len(data))
            how = rng.randrange(3)
            if how == 0:
                data[at] = rng.randrange(256)
            elif how == 1:
                del data[at : at + rng.randrange(1, 5)]
            else:
                data[at:at] = rng.randbytes(rng.randrange(1, 5))
        with contextlib.suppress(RllamaError):  # anything else fails the test
            tokenizer = load_spm(TokenizerSource(kind="spm", model=bytes(data)), "some.model")
            tokenizer.decode(tokenizer.encode("the wolf [x] 中文🦙 <s>\0"))
            n_loaded += 1
    assert 0 < n_loaded < 400
