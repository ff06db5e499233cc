"""A tiny trained SentencePiece model, the library's own view of it, and files made from it."""

from __future__ import annotations

import io
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from rllama.config import TokenizerSource

_WORDS = [
    "story", "the", "a", "wolf", "ran", "into", "forest", "happy", "little", "Lily", "said",
    "hello", "über", "naïve", "once", "upon", "time", "mother", "father", "garden", "flower",
    "river", "中文", "42", "1999",
]  # fmt: skip


def train(model_type: str = "bpe", rule: str = "identity", **options: Any) -> bytes:
    """A ModelProto trained on generated sentences."""
    rng = random.Random(7)
    lines = [
        " ".join(rng.choice(_WORDS) + rng.choice(["", "", "s", ".", ","]) for _ in range(9))
        for _ in range(300)
    ]
    out = io.BytesIO()
    settings: dict[str, Any] = {
        "vocab_size": 360,
        "byte_fallback": True,
        "remove_extra_whitespaces": rule != "identity",
        "hard_vocab_limit": False,
        "minloglevel": 2,
        "user_defined_symbols": ["<sep>", "[x]"],
        "control_symbols": ["<|im|>", "<|im|>2"],
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, model_type=model_type,
        normalization_rule_name=rule, **(settings | options),
    )  # fmt: skip
    return out.getvalue()


@pytest.fixture(scope="session")
def model_bytes() -> bytes:
    return train()


@pytest.fixture(scope="session")
def train_model() -> Callable[..., bytes]:
    return train


@pytest.fixture(scope="session")
def library(model_bytes: bytes) -> Any:
    """The SentencePiece library with the trained model."""
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model_bytes)
    return processor


def _piece_type(processor: Any, i: int) -> int:
    asked = (("IsUnknown", 2), ("IsControl", 3), ("IsUnused", 5), ("IsByte", 6))
    for name, kind in asked:
        if getattr(processor, name)(i):
            return kind
    return 4 if processor.IdToPiece(i) in ("<sep>", "[x]") else 1


@pytest.fixture(scope="session")
def vocab_source(library: Any) -> TokenizerSource:
    """The trained vocabulary as a GGUF reader would hand it over."""
    ids = range(library.vocab_size())
    return TokenizerSource(
        kind="vocab",
        pieces=tuple(library.IdToPiece(i) for i in ids),
        scores=tuple(library.GetScore(i) for i in ids),
        types=tuple(_piece_type(library, i) for i in ids),
        bos_token_id=1, eos_token_id=2, unk_token_id=0,
    )  # fmt: skip


def write_llama2c(entries: list[tuple[bytes, float]], max_bytes: int | None = None) -> bytes:
    """The bytes of a tokenizer.bin."""
    longest = max(len(piece) for piece, _ in entries) if max_bytes is None else max_bytes
    body = b"".join(struct.pack("<fi", score, len(p)) + p for p, score in entries)
    return struct.pack("<I", longest) + body


@pytest.fixture(scope="session")
def llama2c_model() -> bytes:
    """A trained model in the plain order that a tokenizer.bin needs: unknown, BOS, EOS, bytes."""
    return train(user_defined_symbols=[], control_symbols=[])


@pytest.fixture(scope="session")
def llama2c_library(llama2c_model: bytes) -> Any:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(llama2c_model)
    return processor


@pytest.fixture
def llama2c_entries(llama2c_library: Any) -> list[tuple[bytes, float]]:
    """The trained vocabulary as llama2.c exports it."""
    entries = []
    for i in range(llama2c_library.vocab_size()):
        piece = llama2c_library.IdToPiece(i).replace("\u2581", " ")
        piece = {1: "\n<s>\n", 2: "\n</s>\n"}.get(i, piece)
        entries.append((piece.encode(), llama2c_library.GetScore(i)))
    return entries


@pytest.fixture(scope="session")
def make_llama2c() -> Callable[..., bytes]:
    return write_llama2c


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    """Puts bytes into a file whose name says nothing."""

    def put(data: bytes) -> Path:
        path = tmp_path / "tokenizer.any"
        path.write_bytes(data)
        return path

    return put


@pytest.fixture(scope="session")
def data_dir() -> Path:
    path = os.environ.get("RLLAMA_TEST_DATA")
    if not path:
        pytest.skip("RLLAMA_TEST_DATA is not set")
    return Path(path)
