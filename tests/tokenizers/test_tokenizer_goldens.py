"""Known ids of the Llama-2 vocabulary, from its three kinds of file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllama import load_tokenizer
from rllama.config import TokenizerSource
from rllama.tokenizers import load_tokenizer as tokenizer_of
from rllama.tokenizers.base import Tokenizer

SEPARATOR = "\n__ggml_vocab_test__\n"


def gguf_vocabulary(path: Path) -> TokenizerSource:
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    tokens, scores, types = (
        fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "scores", "token_type")
    )
    return TokenizerSource(
        kind="vocab", pieces=tuple(tokens), scores=tuple(scores), types=tuple(types),
        bos_token_id=1, eos_token_id=2, unk_token_id=0,
    )  # fmt: skip


def character_spelling(data: bytes) -> bytes:
    """The same tokenizer.bin with its byte pieces as the characters U+0000 to U+00FF."""
    names = b"".join(struct.pack("<fi6s", 0.0, 6, b"<0x%02X>" % v) for v in range(256))
    chars = [chr(v).encode() for v in range(256)]
    assert data.count(names) == 1
    return data.replace(names, b"".join(struct.pack("<fi", 0.0, len(c)) + c for c in chars))


@pytest.fixture(scope="module", params=["model", "bin", "bin-characters", "gguf"])
def tokenizer(
    request: pytest.FixtureRequest, data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    if request.param == "gguf":
        return tokenizer_of(gguf_vocabulary(data_dir / "vocab/ggml-vocab-llama-spm.gguf"))
    if request.param == "model":
        return load_tokenizer(data_dir / "llama2/tokenizer.model")
    path = data_dir / "llama2/tokenizer.bin"
    if request.param == "bin-characters":
        changed = character_spelling(path.read_bytes())
        assert len(changed) == 432_717
        path = tmp_path_factory.mktemp("bin") / "tokenizer.bin"
        path.write_bytes(changed)
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def llama2_library(data_dir: Path) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(data_dir / "llama2/tokenizer.model"))


def test_llama2c_prompt_has_its_ids(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("I believe the meaning of life is", add_bos=True)
    assert ids == [1, 306, 4658, 278, 6593, 310, 2834, 338]


def test_llama_cpp_texts_have_their_ids(tokenizer: Tokenizer, data_dir: Path) -> None:
    base = data_dir / "vocab/ggml-vocab-llama-spm.gguf"
    texts = Path(f"{base}.inp").read_bytes().decode().split(SEPARATOR)[:-1]
    lines = Path(f"{base}.out").read_text().split("\n")[: len(texts)]
    assert len(texts) == 46
    for text, line in zip(texts, lines, strict=True):
        wanted = [int(word) for word in line.split()]
        assert tokenizer.encode(text) == wanted, text
        assert tokenizer.decode(wanted) == text


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_text_has_the_librarys_ids(
    tokenizer: Tokenizer, llama2_library: Any, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert ids == llama2_library.encode(text)
    assert tokenizer.decode(ids) == text.replace("\u2581", " ")


@given(ids=st.lists(st.integers(0, 31999) | st.sampled_from([0, 1, 2, 13, 35, 29871]), max_size=9))
@settings(max_examples=200, deadline=None)
def test_any_ids_have_the_librarys_text(
    tokenizer: Tokenizer, llama2_library: Any, ids: list[int]
) -> None:
    wanted = llama2_library.decode(ids)
    if "\ufffd" not in wanted:
        assert tokenizer.decode(ids) == wanted


def test_stories_vocabulary_is_read(data_dir: Path) -> None:
    tokenizer = load_tokenizer(data_dir / "stories260K/tok512.bin")
    text = "Once upon a time, there was a little girl named Lily."
    assert tokenizer.vocab_size == 512
    assert tokenizer.decode(tokenizer.encode(text, add_bos=True)) == text
    assert tokenizer.encode("Once upon a time", add_bos=True) == [1, 403, 407, 261, 378]
