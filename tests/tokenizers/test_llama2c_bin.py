"""llama2.c's tokenizer.bin: both spellings, the library's ids, and damage."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rllama import load_tokenizer
from rllama.errors import FormatError

Entries = list[tuple[bytes, float]]
Make = Callable[..., bytes]
Write = Callable[[bytes], Path]
Refused = Callable[[bytes], str]

TEXTS = ["", " ", "  wolf", "Hello wolf\n", "über 中文 🦙", "a\0b", "<s> </s>", "\n<s>\n", "<0x0A>"]


def as_characters(entries: Entries) -> Entries:
    """The other spelling: byte pieces as the characters U+0000 to U+00FF."""
    changed = list(entries)
    for value in range(256):
        changed[3 + value] = (chr(value).encode(), changed[3 + value][1])
    return changed


@pytest.fixture
def refused(write: Write) -> Refused:
    """What is said about bytes that are no tokenizer.bin."""

    def say(data: bytes) -> str:
        path = write(data)
        with pytest.raises(FormatError) as caught:
            load_tokenizer(path)
        text = str(caught.value)
        assert text.startswith(f"{path}: ")
        assert "\n" not in text
        return text

    return say


@pytest.mark.parametrize("spelling", ["names", "characters"])
def test_ids_and_texts_are_the_librarys(
    llama2c_entries: Entries, llama2c_library: Any, make_llama2c: Make, write: Write, spelling: str
) -> None:
    entries = llama2c_entries if spelling == "names" else as_characters(llama2c_entries)
    path = write(make_llama2c(entries))
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_size == llama2c_library.vocab_size()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == llama2c_library.encode(text)
        assert tokenizer.decode(ids) == text
    for i in range(tokenizer.vocab_size):
        assert tokenizer.decode([30, i]) == llama2c_library.decode([30, i]) or 3 <= i < 259


def test_both_spellings_show_the_same_bytes(
    llama2c_entries: Entries, make_llama2c: Make, write: Write
) -> None:
    tables = []
    for entries in (llama2c_entries, as_characters(llama2c_entries)):
        tokenizer = load_tokenizer(write(make_llama2c(entries)))
        tables.append([tokenizer.piece_bytes(i) for i in range(tokenizer.vocab_size)])
    assert tables[0] == tables[1]
    assert tables[0][3:259] == [bytes((value,)) for value in range(256)]


def test_character_spelling_with_a_hole_is_refused(
    llama2c_entries: Entries, make_llama2c: Make, refused: Refused
) -> None:
    entries = as_characters(llama2c_entries)
    entries[3 + 200] = (b"zz", 0.0)
    assert "piece 203 should be the byte C8" in refused(make_llama2c(entries))
    assert "piece 100 should be" in refused(make_llama2c(entries[:100]))


@pytest.mark.parametrize("max_bytes", [0, 2**16 + 1, 2**31, 2**32 - 1])
def test_longest_piece_out_of_range_is_refused(
    llama2c_entries: Entries, make_llama2c: Make, refused: Refused, max_bytes: int
) -> None:
    said = refused(make_llama2c(llama2c_entries, max_bytes))
    assert "not a known tokenizer" in said
    assert f"would have {max_bytes} bytes" in said


@pytest.mark.parametrize("n_bytes", [-1, -(2**31), 8, 2**31 - 1])
def test_piece_lengths_out_of_range_are_refused(refused: Refused, n_bytes: int) -> None:
    data = struct.pack("<I", 7) + struct.pack("<fi", 0.0, 5) + b"<unk>"
    said = refused(data + struct.pack("<fi", 0.0, n_bytes) + b"x" * 8)
    assert f"piece 1 at offset 17: length {n_bytes} " in said


def test_every_cut_is_refused_or_misses_whole_pieces(
    llama2c_entries: Entries, make_llama2c: Make, refused: Refused
) -> None:
    data = make_llama2c(llama2c_entries)
    ends = {4 + sum(8 + len(piece) for piece, _ in llama2c_entries[:n])
            for n in range(len(llama2c_entries))}  # fmt: skip
    for n_bytes in {*range(60), *range(len(data) - 40, len(data))} - ends:
        refused(data[:n_bytes])
    assert "too few" in refused(data[:3])
    assert "is cut off" in refused(data + b"x" * 7)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, 1e38])
def test_scores_that_are_no_sane_number_are_refused(
    llama2c_entries: Entries, make_llama2c: Make, refused: Refused, score: float
) -> None:
    llama2c_entries[300] = (llama2c_entries[300][0], score)
    assert "piece 300 " in refused(make_llama2c(llama2c_entries))


def test_missing_and_repeated_byte_pieces_are_refused(
    llama2c_entries: Entries, make_llama2c: Make, refused: Refused
) -> None:
    llama2c_entries[3 + 0x41] = (b"qq", 0.0)
    assert "<0x41> is missing" in refused(make_llama2c(llama2c_entries))
    llama2c_entries[3 + 0x41] = (b"<0x42>", 0.0)
    assert "second piece for one byte" in refused(make_llama2c(llama2c_entries))


def test_pieces_that_are_not_utf8_are_refused(
    llama2c_entries: Entries, make_llama2c: Make, refused: Refused
) -> None:
    llama2c_entries[300] = (b"\xc3", 0.0)
    assert "piece 300 is not UTF-8" in refused(make_llama2c(llama2c_entries))


def test_empty_and_repeated_pieces_can_be_decoded_and_are_never_made(
    llama2c_entries: Entries, make_llama2c: Make, write: Write
) -> None:
    whole = load_tokenizer(write(make_llama2c(llama2c_entries)))
    twin = whole.encode("wolf")[-1]
    longer = [*llama2c_entries, llama2c_entries[twin], (b"", 0.0), (b"", 0.0)]
    tokenizer = load_tokenizer(write(make_llama2c(longer)))
    n_pieces = len(llama2c_entries)
    for text in TEXTS:
        assert tokenizer.encode(text) == whole.encode(text)
    assert tokenizer.piece_bytes(n_pieces) == whole.piece_bytes(twin)
    assert tokenizer.piece_bytes(n_pieces + 1) == tokenizer.piece_bytes(n_pieces + 2) == b""


def test_a_vocabulary_without_byte_pieces_uses_the_unknown_one(
    make_llama2c: Make, write: Write
) -> None:
    entries = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0), (b" ", -1.0), (b"a", -2.0)]
    tokenizer = load_tokenizer(write(make_llama2c(entries)))
    assert tokenizer.encode("a a?") == [3, 4, 3, 4, 0]
    assert tokenizer.decode([3, 4, 0]) == "a \u2047 "


def test_a_large_foreign_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    with path.open("wb") as file:
        file.truncate(2**36)
    with pytest.raises(FormatError, match="more than 67108864 are refused"):
        load_tokenizer(path)
