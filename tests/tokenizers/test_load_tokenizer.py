"""Which file is which, by content, and what is said about the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import rllama.tokenizers
from rllama.config import TokenizerSource
from rllama.errors import FormatError, UnsupportedError
from rllama.tokenizers import load_tokenizer, sniff

Write = Callable[[bytes], Path]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"GGUF\3\0\0\0", "gguf"),
        (b'\n {"version": "1.0"}', "hf"),
        (b"IQ== 0\nIg== 1\n", "tiktoken"),
        (b"", "unknown"),
        (b"\x0a", "unknown"),
        (b"PK\3\4" + bytes(60), "unknown"),
        (bytes(64), "unknown"),
        (b"\x0a\0\0\0" + b"\0\0\0\0\5\0\0\0<unk>", "llama2c"),
        (b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\2", "spm"),
    ],
)
def test_kinds_are_told_by_content(write: Write, data: bytes, kind: str) -> None:
    assert sniff(write(data)) == kind


def test_a_trained_model_is_told_by_content(write: Write, model_bytes: bytes) -> None:
    path = write(model_bytes)
    assert sniff(path) == "spm"
    assert load_tokenizer(path).encode("wolf") == load_tokenizer(str(path)).encode("wolf")


def test_the_content_wins_over_the_kind_that_was_named(write: Write, model_bytes: bytes) -> None:
    source = TokenizerSource(kind="llama2c", path=str(write(model_bytes)))
    assert load_tokenizer(source).decode([*load_tokenizer(source).encode("wolf")]) == "wolf"


@pytest.mark.parametrize("data", [b"GGUF\3\0\0\0", b"{}", b"IQ== 0\n"])
def test_kinds_that_are_not_read_are_named(write: Write, data: bytes) -> None:
    with pytest.raises(UnsupportedError, match=r"kind (gguf|hf|tiktoken)"):
        load_tokenizer(write(data))


@pytest.mark.parametrize("data", [b"", b"\0", b"hello", b"PK\3\4" + bytes(60), bytes(64)])
def test_foreign_files_are_refused(write: Write, data: bytes) -> None:
    path = write(data)
    with pytest.raises(FormatError, match=r"tokenizer\.any: ") as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)
    for kind in ("spm", "llama2c"):
        with pytest.raises(FormatError, match=r"tokenizer\.any: "):
            load_tokenizer(TokenizerSource(kind=kind, path=str(path)))


def test_paths_that_are_no_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "loop", tmp_path / "absent"):
        with pytest.raises(FormatError, match=path.name):
            load_tokenizer(path)
    with pytest.raises(FormatError, match="null"):
        load_tokenizer("a\0b")
    with pytest.raises(FormatError, match="needs a path"):
        load_tokenizer(TokenizerSource(kind="spm"))


def test_the_library_is_not_imported_before_it_is_needed() -> None:
    source_root = Path(rllama.tokenizers.__file__).parents[2]
    code = (
        "import sys, rllama.tokenizers, rllama.engine.detokenize;"
        "print('sentencepiece' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(source_root)},
    )  # fmt: skip
    assert run.stdout == "False\n"
