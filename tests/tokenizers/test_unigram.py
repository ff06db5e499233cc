"""The Unigram vocabulary of a GGUF: the ids of the SentencePiece model that it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sentencepiece
from random_texts import texts

from rllama.config import TokenizerSource
from rllama.errors import FormatError
from rllama.tokenizers import load_tokenizer
from rllama.tokenizers.protobuf import fields

RULES = [("nmt_nfkc", True), ("identity", False), ("nfkc_cf", True)]


def charsmap_of(model: bytes) -> bytes:
    normalizer = next(bytes(v) for n, v in fields(model, {3: 2}, "m") if isinstance(v, bytes))
    return next((v for _, v in fields(normalizer, {2: 2}, "m") if isinstance(v, bytes)), b"")


def source_of(model: bytes, *, removes: bool) -> tuple[TokenizerSource, Any]:
    """A model as a GGUF holds it, and the library with the model itself."""
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(library.vocab_size())
    kinds = (("IsUnknown", 2), ("IsControl", 3), ("IsUnused", 5), ("IsByte", 6))
    types = [next((k for name, k in kinds if getattr(library, name)(i)), 1) for i in ids]
    pieces = tuple(library.IdToPiece(i) for i in ids)
    types = [4 if piece in ("<sep>", "[x]") else t for piece, t in zip(pieces, types, strict=True)]
    source = TokenizerSource(
        kind="unigram", path="m.gguf", pieces=pieces, types=tuple(types),
        scores=tuple(library.GetScore(i) for i in ids), charsmap=charsmap_of(model),
        remove_extra_whitespaces=removes, eos_token_id=2, unk_token_id=0, add_bos=False,
    )  # fmt: skip
    return source, library


@pytest.mark.parametrize(("rule", "removes"), RULES)
def test_unigram_ids_are_the_librarys(
    train_model: Callable[..., bytes], rule: str, removes: bool
) -> None:
    source, library = source_of(train_model("unigram", rule), removes=removes)
    ours = load_tokenizer(source)
    direct = load_tokenizer(TokenizerSource(kind="spm", model=train_model("unigram", rule)))
    for text in texts(400, 41, ("<sep>", "[x]", "</s>")):
        wanted = library.encode(text)
        assert ours.encode(text) == wanted
        assert direct.encode(text) == wanted
        assert ours.decode(wanted) == direct.decode(wanted)
    assert not ours.add_bos


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_ids_are_the_librarys_on_20000_texts(
    train_model: Callable[..., bytes], kind: str
) -> None:
    model = train_model(kind)
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = load_tokenizer(TokenizerSource(kind="spm", model=model))
    for text in texts(20_000, 42, ("<sep>", "</s>")):
        assert ours.encode(text) == library.encode(text)


def test_unigram_charsmap_that_leaves_its_bounds_is_refused(
    train_model: Callable[..., bytes],
) -> None:
    source, _ = source_of(train_model("unigram", "nmt_nfkc"), removes=True)
    blob = bytearray(source.charsmap)
    blob[4:8] = (0x7FFFFC00).to_bytes(4, "little")
    for bad in (bytes(blob), source.charsmap[:9], source.charsmap[:-1] + b"x"):
        with pytest.raises(FormatError, match=r"m\.gguf: precompiled_charsmap"):
            load_tokenizer(replace(source, charsmap=bad))
