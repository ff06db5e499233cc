"""Lists of strings: the quick way and the slow way of stepping over them agree."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from rllama.errors import FormatError
from rllama.formats.cursor import Cursor
from rllama.formats.mapped_file import MappedFile

N = 100  # above the number from which the quick way is tried


def plain(n: int) -> list[str]:
    return [f"piece {i}" for i in range(n)]


LISTS = {
    "plain": plain(N),
    "not_ascii": [f"▁été{i}" for i in range(N)],
    "few": plain(3),
    "none": [],
    "empty_ones": ["", "a", ""] * N,
    "all_empty": [""] * N,
    "nul_inside": [*plain(N), "\0" * 9, "a\0b"],
    "zeros_like_a_length": [*plain(N), "\x07" + "\0" * 7 + "x" * 7],
    "one_of_300_bytes": [*plain(N), "x" * 300, *plain(N)],
    "one_of_70000_bytes": [*plain(N), "x" * 70000],
}


def pack(texts: list[bytes]) -> bytes:
    return b"".join(struct.pack("<Q", len(text)) + text for text in texts)


def read_back(path: Path, data: bytes, count: int, tail: bytes) -> tuple[list[str], bytes]:
    path.write_bytes(data + tail)
    with MappedFile(str(path)) as file:
        cursor = Cursor(file)
        found = cursor.strings_at(cursor.skip_strings(count, "list"), "list")
        rest = cursor.take(len(tail), "tail")
    file.close()
    return found, rest


@pytest.mark.parametrize("tail", [b"end", bytes(5000)], ids=["short_tail", "zeros_behind"])
@pytest.mark.parametrize("name", LISTS)
def test_strings_come_back(name: str, tail: bytes, tmp_path: Path) -> None:
    texts = LISTS[name]
    data = pack([text.encode() for text in texts])
    assert read_back(tmp_path / "m", data, len(texts), tail) == (texts, tail)


def test_strings_come_back_across_the_first_read(tmp_path: Path) -> None:
    texts = [f"{i}" * 50 for i in range(40_000)]
    data = pack([text.encode() for text in texts])
    assert len(data) > 2 << 20
    assert read_back(tmp_path / "m", data, len(texts), b"end") == (texts, b"end")


def test_random_strings_come_back(tmp_path: Path) -> None:
    for seed in range(30):
        rng = random.Random(seed)
        texts = ["".join(rng.choices("ab\0\x01▁é", k=rng.randrange(12))) for _ in range(150)]
        data = pack([text.encode() for text in texts])
        assert read_back(tmp_path / "m", data, len(texts), b"end") == (texts, b"end"), seed


def test_string_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    data = pack([*(text.encode() for text in plain(N)), b"\xff", b"x"])
    with pytest.raises(FormatError, match=r"entry 100 at offset .* is not UTF-8"):
        read_back(tmp_path / "m", data, N + 2, b"end")


@pytest.mark.parametrize("count", [1, 64, N + 1, N + 2])
def test_strings_beyond_the_file_are_refused(count: int, tmp_path: Path) -> None:
    data = pack([text.encode() for text in plain(count)])[:-1]
    with pytest.raises(FormatError, match="beyond the file"):
        read_back(tmp_path / "m", data, count, b"")
