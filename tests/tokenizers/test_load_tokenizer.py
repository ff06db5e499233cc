"""The one door: what comes in, and what it costs to open."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import rllama.tokenizers
from rllama import load_tokenizer
from rllama.config import TokenizerSource
from rllama.errors import FormatError, RllamaError, UnsupportedError

Write = Callable[[bytes], Path]


def test_a_trained_model_is_told_by_content(write: Write, model_bytes: bytes) -> None:
    path = write(model_bytes)
    ids = load_tokenizer(path).encode("wolf")
    assert ids == load_tokenizer(str(path)).encode("wolf")
    assert load_tokenizer(path).decode(ids) == "wolf"


def test_kinds_are_told_by_content_whatever_their_name(write: Write) -> None:
    with pytest.raises(UnsupportedError, match="a tiktoken file of 2 tokens"):
        load_tokenizer(write(b"IQ== 0\nIg== 1\n"))
    with pytest.raises(FormatError, match="it has no model"):
        load_tokenizer(write(b'\n {"version": "1.0"}'))


@pytest.mark.parametrize("data", [b"", b"\0", b"\x0a", b"hello", b"PK\3\4" + bytes(60), bytes(64)])
def test_foreign_files_are_refused(write: Write, data: bytes) -> None:
    with pytest.raises(FormatError, match=r"tokenizer\.any: ") as caught:
        load_tokenizer(write(data))
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "loop", tmp_path / "absent"):
        with pytest.raises(RllamaError, match=path.name):
            load_tokenizer(path)
    with pytest.raises(RllamaError, match="null"):
        load_tokenizer("a\0b")


def test_a_source_without_a_model_is_refused() -> None:
    with pytest.raises(FormatError, match="vocabulary: 0 pieces"):
        rllama.tokenizers.load_tokenizer(TokenizerSource(kind="spm"))


def test_the_library_is_not_imported_before_it_is_needed() -> None:
    source_root = Path(rllama.tokenizers.__file__).parents[2]
    code = (
        "import sys, rllama.tokenizers, rllama.engine.detokenize;"
        "print('sentencepiece' in sys.modules or 'tokenizers' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(source_root)},
    )  # fmt: skip
    assert run.stdout == "False\n"
