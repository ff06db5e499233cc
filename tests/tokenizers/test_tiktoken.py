"""tiktoken files: what is read, and Llama 3's ids as tiktoken itself has them."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from random_texts import texts

from rllama import load_tokenizer
from rllama.config import TokenizerSource
from rllama.errors import FormatError, RllamaError, UnsupportedError
from rllama.tokenizers import load_tokenizer as tokenizer_of
from rllama.tokenizers import tiktoken_file
from rllama.tokenizers.base import Tokenizer
from rllama.tokenizers.library import _parts
from rllama.tokenizers.patterns import LLAMA3, LLAMA4

Ranks = dict[bytes, int]


def trained_ranks(n_tokens: int = 700) -> Ranks:
    """Ranks as byte-pair training gives them, with a few that merging never reaches."""
    rng = random.Random(4)
    words = [
        rng.choice(["wolf", "the", " the", "aaa", "ab" * 4, "\n\n", "日本", "don"])
        for _ in "x" * 99
    ]
    parts = [[bytes((b,)) for b in word.encode()] for word in words]
    ranks = {bytes((b,)): b for b in range(256)}
    while len(ranks) < n_tokens - 40:
        pairs = [(a, b) for part in parts for a, b in pairwise(part)]
        if not pairs:
            break
        best = max(sorted(set(pairs)), key=pairs.count)
        ranks.setdefault(best[0] + best[1], len(ranks))
        parts = [_merged(part, best) for part in parts]
    while len(ranks) < n_tokens:
        ranks.setdefault(rng.randbytes(rng.randint(2, 5)), len(ranks))
    return ranks


def _merged(part: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    out: list[bytes] = []
    for piece in part:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def file_of(ranks: Ranks) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


@pytest.fixture(params=["llama3", "llama4"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Tokenizer, Any]:
    """A small file, read as if it had the size of a version, and tiktoken's view of it."""
    tiktoken = pytest.importorskip("tiktoken")
    version = {"llama3": tiktoken_file._llama3, "llama4": tiktoken_file._llama4}[request.param]()
    monkeypatch.setattr("rllama.tokenizers.bpe_load.version_of", lambda n, where: version)
    ranks = trained_ranks()
    ours = tokenizer_of(TokenizerSource(kind="tiktoken", model=file_of(ranks)))
    special = {name: len(ranks) + i for i, name in enumerate(version.special_names)}
    pattern = LLAMA3 if request.param == "llama3" else LLAMA4
    theirs = tiktoken.Encoding(
        "small", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
    )
    return ours, theirs


def test_tiktoken_ids_of_a_small_file_are_the_librarys(small: tuple[Tokenizer, Any]) -> None:
    ours, theirs = small
    for text in [*texts(800, 3, ("<|begin_of_text|>", "<|end_of_text|>")), "ab" * 99, "aaa" * 50]:
        ids = theirs.encode_ordinary(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == text
        full = theirs.encode(text, allowed_special="all")
        assert ours.encode(text, parse_special=True) == full


def test_tiktoken_special_tokens_are_those_of_the_versions() -> None:
    three, four = tiktoken_file._llama3(), tiktoken_file._llama4()
    assert (len(three.special_names), len(four.special_names)) == (256, 2048)
    for version in (three, four):
        assert len(set(version.special_names)) == len(version.special_names)
    at = three.special_names.index
    assert [at(f"<|{name}|>") for name in ("begin_of_text", "end_of_text", "finetune_right_pad_id",
            "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag",
            "reserved_special_token_250")] == [0, 1, 4, 6, 7, 8, 9, 10, 255]  # fmt: skip
    at = four.special_names.index
    assert [at(f"<|{name}|>") for name in ("begin_of_text", "fim_prefix", "header_start",
            "eom", "eot", "finetune_right_pad", "image_start", "patch",
            "reasoning_thinking_start")] == [0, 2, 5, 7, 8, 18, 80, 92, 1142]  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "error", "says"),
    [
        (lambda lines: lines.__setitem__(5, b"!! 5"), FormatError, "line 6 is no base64"),
        (lambda lines: lines.__setitem__(5, b"QUI 5"), FormatError, "line 6 is no base64"),
        (lambda lines: lines.__setitem__(5, lines[4]), FormatError, "rank 4, expected 5"),
        (lambda lines: lines.__setitem__(5, lines[4][:-1] + b"5"), FormatError, "repeats"),
        (lambda lines: lines.pop(5), FormatError, "line 6 has the rank 6, expected 5"),
        (lambda lines: lines.__setitem__(5, b" 5"), FormatError, "a token of 0 bytes"),
        (lambda lines: lines.__setitem__(5, b"QUI= -5"), FormatError, "has the rank -5"),
        (lambda lines: lines.__setitem__(5, b"QUI= 99999999999"), FormatError, "has the rank 9999"),
        (lambda lines: lines.__setitem__(5, b""), FormatError, "has the rank , expected 5"),
        (lambda lines: lines.pop(), UnsupportedError, "a tiktoken file of 699 tokens"),
    ],
)
def test_tiktoken_damage_is_refused(
    edit: Callable[[list[bytes]], object], error: type[RllamaError], says: str
) -> None:
    lines = file_of(trained_ranks()).splitlines()
    edit(lines)
    source = TokenizerSource(kind="tiktoken", path="t", model=b"\n".join(lines))
    with pytest.raises(error, match=says) as caught:
        tokenizer_of(source)
    assert str(caught.value).startswith("t: ")


def test_tiktoken_file_without_a_byte_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    version = tiktoken_file._llama3()
    monkeypatch.setattr("rllama.tokenizers.bpe_load.version_of", lambda n, where: version)
    ranks = trained_ranks()
    del ranks[b"A"]
    data = file_of({token: i for i, token in enumerate(ranks)})
    with pytest.raises(FormatError, match="no token for the byte 41"):
        tokenizer_of(TokenizerSource(kind="tiktoken", model=data))


def _metas_parts(text: str, longest: int) -> list[str]:
    """Meta's rule, one character after another."""
    found: list[str] = []
    start = n = 0
    was_space = text[:1].isspace()
    for i, char in enumerate(text):
        if char.isspace() != was_space:
            n, was_space = 1, char.isspace()
        else:
            n += 1
            if n > longest:
                found.append(text[start:i])
                start, n = i, 1
    return [*found, text[start:]]


def test_tiktoken_long_runs_are_cut_as_in_metas_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rllama.tokenizers.library._SLICE", 97)
    rng = random.Random(5)
    for _ in range(300):
        text = "".join(rng.choice("a \n\x1c") * rng.randrange(1, 40) for _ in range(9))
        wanted = [p for i in range(0, len(text), 97) for p in _metas_parts(text[i : i + 97], 7)]
        assert list(_parts(text, 7)) == wanted


# ---- the real file ----


@cache
def real(folder: Path) -> tuple[Tokenizer, Tokenizer, Any]:
    """Llama 3's file, llama.cpp's GGUF of the same vocabulary, and tiktoken's view."""
    path = folder / "llama3/tokenizer.model"
    ranks = {
        base64.b64decode(a): int(b) for a, b in map(bytes.split, path.read_bytes().splitlines())
    }
    special = {name: 128_000 + i for i, name in enumerate(tiktoken_file._llama3().special_names)}
    tiktoken = pytest.importorskip("tiktoken")
    theirs = tiktoken.Encoding("l", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens=special)
    gguf = load_tokenizer(folder / "vocab/ggml-vocab-llama-bpe.gguf")
    return load_tokenizer(path), gguf, theirs


def compare(folder: Path, n: int, seed: int) -> int:
    """Texts of which one of the three has other ids."""
    ours, gguf, theirs = real(folder)
    wrong = 0
    for text in texts(n, seed, ("<|begin_of_text|>", "<|eot_id|>", "<|eom_id|>")):
        plain, full = theirs.encode_ordinary(text), theirs.encode(text, allowed_special="all")
        wrong += ours.encode(text) != plain or gguf.encode(text) != plain
        wrong += ours.encode(text, parse_special=True) != full
        assert ours.decode_bytes(full) == b"".join(map(ours.piece_bytes, full))
        assert gguf.decode(plain) == text
        assert ours.decode(plain) == text
    return wrong


def test_llama3_ids_are_tiktokens(data_dir: Path) -> None:
    assert compare(data_dir, 400, 21) == 0


@pytest.mark.slow
def test_llama3_ids_are_tiktokens_on_20000_texts(data_dir: Path) -> None:
    assert compare(data_dir, 20_000, 22) == 0


def test_llama3_specials_are_known(data_dir: Path) -> None:
    ours, gguf, _ = real(data_dir)
    assert (ours.bos_token_id, ours.eos_token_id, ours.add_bos) == (128_000, 128_001, True)
    assert ours.stop_token_ids == (128_009, 128_008)
    assert ours.n_pieces == ours.vocab_size == gguf.n_pieces == 128_256
    assert (gguf.bos_token_id, gguf.add_bos) == (128_000, True)
    renamed = {128_004, 128_008, 128_010}
    for token_id in {*range(127_000, 128_256)} - renamed:
        assert ours.token_text(token_id) == gguf.token_text(token_id)
        assert ours.piece_bytes(token_id) == gguf.piece_bytes(token_id)
    assert ours.encode("<|eom_id|>", parse_special=True) == [128_008]


def test_llama3_in_a_model_with_fewer_rows_is_refused(data_dir: Path) -> None:
    data = (data_dir / "llama3/tokenizer.model").read_bytes()
    source = TokenizerSource(kind="tiktoken", model=data, vocab_size=128_255)
    with pytest.raises(FormatError, match="128256 pieces for a model with 128255"):
        tokenizer_of(source)
    padded = tokenizer_of(replace(source, vocab_size=128_512))
    assert padded.piece_bytes(128_511) == b""


def test_llama_cpp_texts_have_their_ids_in_bpe(data_dir: Path) -> None:
    ours, gguf, _ = real(data_dir)
    base = data_dir / "vocab/ggml-vocab-llama-bpe.gguf"
    cases = Path(f"{base}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")[:-1]
    lines = Path(f"{base}.out").read_text().split("\n")[: len(cases)]
    assert len(cases) == 46
    for text, line in zip(cases, lines, strict=True):
        wanted = [int(word) for word in line.split()]
        assert ours.encode(text) == gguf.encode(text) == wanted, text
        assert gguf.decode(wanted) == text
