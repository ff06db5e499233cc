"""Vocabularies from inside a checkpoint: what is refused, and what is put right."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from rllama.config import TokenizerSource
from rllama.errors import FormatError
from rllama.tokenizers import load_tokenizer
from rllama.tokenizers.spm_proto import Rules, model_proto, producible
from rllama.tokenizers.vocabulary import vocabulary_of

TEXTS = ["once upon a time", "  x", "[x]<sep> 中文🦙", "<s>", "\0\n"]


def changed(source: TokenizerSource, name: str, at: int, value: Any) -> TokenizerSource:
    values = list(getattr(source, name))
    values[at] = value
    return replace(source, **{name: tuple(values)})


def refused(source: TokenizerSource) -> str:
    with pytest.raises(FormatError) as caught:
        load_tokenizer(replace(source, path="m.gguf"))
    assert str(caught.value).startswith("m.gguf: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_lists_of_different_length_are_refused(vocab_source: TokenizerSource) -> None:
    n_pieces = len(vocab_source.pieces)
    short = replace(vocab_source, scores=vocab_source.scores[:-1])
    assert f"{n_pieces - 1} scores for {n_pieces} pieces" in refused(short)
    long = replace(vocab_source, types=(*vocab_source.types, 1))
    assert f"{n_pieces + 1} types for {n_pieces} pieces" in refused(long)
    assert "0 scores" in refused(replace(vocab_source, scores=()))


@pytest.mark.parametrize(
    ("name", "at", "value", "says"),
    [
        ("scores", 300, math.nan, "piece 300 has score"),
        ("scores", 300, 1e300, "piece 300 has score"),
        ("types", 300, 7, "piece 300 has type 7"),
        ("types", 300, 0, "piece 300 has type 0"),
        ("types", 300, 300, "type is outside"),
        ("types", 300, -1, "type is outside"),
        ("pieces", 300, "x" * 70_000, "piece 300 has 70000 bytes"),
        ("pieces", 300, "\ud800", "not Unicode"),
        ("pieces", 10, "<0xZZ>", "is no byte"),
        ("pieces", 10, "<0x100>", "is no byte"),
        ("pieces", 10, "<0x-1>", "is no byte"),
        ("types", 10, 1, "is missing"),
    ],
)
def test_values_out_of_range_are_refused(
    vocab_source: TokenizerSource, name: str, at: int, value: object, says: str
) -> None:
    assert says in refused(changed(vocab_source, name, at, value))


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id", "unk_token_id"])
@pytest.mark.parametrize("value", [-1, 10**6, 2**32])
def test_special_ids_outside_are_refused(
    vocab_source: TokenizerSource, name: str, value: int
) -> None:
    assert str(value) in refused(replace(vocab_source, **{name: value}))


def test_more_pieces_than_the_model_has_rows_are_refused(vocab_source: TokenizerSource) -> None:
    n_pieces = len(vocab_source.pieces)
    said = refused(replace(vocab_source, vocab_size=n_pieces - 1))
    assert f"{n_pieces} pieces for a model with {n_pieces - 1}" in said
    exact = replace(vocab_source, vocab_size=n_pieces)
    assert load_tokenizer(exact).vocab_size == n_pieces


def test_an_empty_vocabulary_is_refused(vocab_source: TokenizerSource) -> None:
    assert "0 pieces" in refused(TokenizerSource(kind="vocab"))


def test_nul_in_a_user_defined_piece_is_refused(vocab_source: TokenizerSource) -> None:
    at = vocab_source.pieces.index("<sep>")
    assert "holds a NUL" in refused(changed(vocab_source, "pieces", at, "<\0>"))


def test_twins_and_empty_pieces_do_not_change_the_ids(
    vocab_source: TokenizerSource, library: Any
) -> None:
    extra = ("wolf", "", "<s>", "<0x41>", "", "\u2581the", "<unk>")
    types = (1, 1, 3, 1, 3, 1, 2)
    source = replace(
        vocab_source,
        pieces=vocab_source.pieces + extra,
        scores=vocab_source.scores + (0.0,) * len(extra),
        types=vocab_source.types + types,
    )
    tokenizer = load_tokenizer(source)
    n_pieces = len(vocab_source.pieces)
    for text in TEXTS:
        assert tokenizer.encode(text) == library.encode(text)
    shown = [tokenizer.piece_bytes(n_pieces + i) for i in (1, 2, 3, 5)]
    assert shown == [b"", b"", b"<0x41>", b" the"]


def test_without_an_unknown_piece_bytes_do_the_work(
    vocab_source: TokenizerSource, library: Any
) -> None:
    source = replace(changed(vocab_source, "types", 0, 3), unk_token_id=None)
    tokenizer = load_tokenizer(source)
    for text in TEXTS:
        assert tokenizer.encode(text) == library.encode(text)
    assert tokenizer.vocab_size == len(vocab_source.pieces)


def test_without_an_unknown_piece_and_bytes_it_is_refused() -> None:
    source = TokenizerSource(kind="vocab", pieces=("a", "b"), scores=(0.0, 0.0), types=(1, 1))
    assert "no unknown piece" in refused(source)


def test_missing_types_are_told_from_spelling(vocab_source: TokenizerSource, library: Any) -> None:
    tokenizer = load_tokenizer(replace(vocab_source, types=()))
    assert tokenizer.encode("wolf 🦙") == library.encode("wolf 🦙")
    assert tokenizer.is_special(1)


def test_byte_pieces_in_small_letters_work(vocab_source: TokenizerSource, library: Any) -> None:
    small = tuple(p.lower() if p.startswith("<0x") else p for p in vocab_source.pieces)
    tokenizer = load_tokenizer(replace(vocab_source, pieces=small))
    ids = tokenizer.encode("🦙\n")
    assert ids == library.encode("🦙\n")
    assert tokenizer.decode(ids) == "🦙\n"


def test_bos_and_eos_are_found_by_name(vocab_source: TokenizerSource) -> None:
    tokenizer = load_tokenizer(replace(vocab_source, bos_token_id=None, eos_token_id=None))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_a_vocabulary_without_bos_adds_none() -> None:
    source = TokenizerSource(
        kind="vocab", pieces=("<unk>", "\u2581", "a"), scores=(0.0, -1.0, -2.0), types=(2, 1, 1)
    )
    tokenizer = load_tokenizer(source)
    assert tokenizer.bos_token_id is None
    assert not tokenizer.add_bos
    assert tokenizer.encode("a", add_bos=True) == [1, 2]


def test_the_written_model_is_read_by_the_library_as_meant(vocab_source: TokenizerSource) -> None:
    import sentencepiece

    vocab = producible(vocabulary_of(vocab_source, "m"), 0, "m")
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model_proto(vocab, Rules()))
    ids = range(processor.vocab_size())
    assert [processor.IdToPiece(i) for i in ids] == list(vocab_source.pieces)
    assert [processor.GetScore(i) for i in ids] == list(vocab_source.scores)
    assert [i for i in ids if processor.IsByte(i)] == [
        i for i in ids if vocab_source.types[i] == 6
    ]  # fmt: skip
