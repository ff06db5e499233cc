"""Ids and texts of a trained vocabulary: as .model and as the lists inside a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllama.config import TokenizerSource
from rllama.errors import ConfigError
from rllama.tokenizers import load_tokenizer
from rllama.tokenizers.spm import SpmTokenizer

TEXTS = [
    "", " ", "   ", "\n", "\n\n \t", "Hello wolf", " Hello", "Hello  wolf ", "über naïve 中文",
    "🦙👨\u200d👩\u200d👧", "a\0b", "<s>", "</s>", "<unk>", "<0x0A>", "<sep>", "a<sep>b [x][x]",
    "<|im|>", "\r\n", "e\u0301", "\uffff\U0010ffff", "once upon a time" * 20, "\u2581x",
]  # fmt: skip

text_strategy = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=60
) | st.lists(st.sampled_from(["once", " ", "wolf", "[x]", "<s>", "\n", "é", "🦙", "\0"])).map(
    "".join
)


@pytest.fixture(scope="module", params=["model", "vocab"])
def tokenizer(
    request: pytest.FixtureRequest, model_bytes: bytes, vocab_source: TokenizerSource
) -> SpmTokenizer:
    source = vocab_source
    if request.param == "model":
        source = TokenizerSource(kind="spm", model=model_bytes)
    made = load_tokenizer(source)
    assert isinstance(made, SpmTokenizer)
    return made


@pytest.mark.parametrize("text", TEXTS)
def test_encode_gives_the_librarys_ids(tokenizer: SpmTokenizer, library: Any, text: str) -> None:
    assert tokenizer.encode(text) == library.encode(text)


@given(text=text_strategy)
@settings(max_examples=200, deadline=None)
def test_encode_any_text_gives_the_librarys_ids(
    tokenizer: SpmTokenizer, library: Any, text: str
) -> None:
    assert tokenizer.encode(text) == library.encode(text)


@given(text=text_strategy)
@settings(max_examples=300, deadline=None)
def test_decode_gives_back_any_text(tokenizer: SpmTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text, add_bos=True)) == text


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_decode_of_any_ids_is_the_librarys(
    tokenizer: SpmTokenizer, library: Any, data: st.DataObject
) -> None:
    some_id = st.integers(0, library.vocab_size() - 1) | st.sampled_from([0, 1, 2, 5, 37, 104])
    ids = data.draw(st.lists(some_id, max_size=8))
    wanted = library.decode(ids)
    if "\ufffd" not in wanted:  # the library counts broken bytes in its own way
        assert tokenizer.decode(ids) == wanted


def test_decode_bytes_is_the_pieces_together_but_for_the_first_space(
    tokenizer: SpmTokenizer,
) -> None:
    ids = tokenizer.encode("Hello wolf 🦙", add_bos=True)
    joined = b"".join(map(tokenizer.piece_bytes, ids))
    assert joined == b" " + tokenizer.decode_bytes(ids)


def test_decode_takes_only_one_space_away(tokenizer: SpmTokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("  wolf")) == "  wolf"


def test_broken_utf8_becomes_the_replacement_character(tokenizer: SpmTokenizer) -> None:
    llama = tokenizer.encode("x🦙")[-4:]
    assert [tokenizer.piece_bytes(i) for i in llama] == [b"\xf0", b"\x9f", b"\xa6", b"\x99"]
    assert tokenizer.decode(llama[:3]) == "\ufffd"
    assert tokenizer.decode(llama[1:]) == "\ufffd\ufffd\ufffd"


def test_empty_text_is_no_token_or_bos(tokenizer: SpmTokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.encode("", add_bos=True) == [1]
    assert tokenizer.decode([]) == ""


def test_lone_surrogates_become_the_replacement_character(tokenizer: SpmTokenizer) -> None:
    assert tokenizer.encode("a\ud800b\udfff") == tokenizer.encode("a\ufffdb\ufffd")
    assert tokenizer.encode("\ud83e\udd99") == tokenizer.encode("🦙")


@pytest.mark.parametrize("token_id", [-1, -360, 2**31, 2**32, 2**70])
def test_ids_outside_are_refused_by_name(tokenizer: SpmTokenizer, token_id: int) -> None:
    for call in (tokenizer.piece_bytes, tokenizer.is_special):
        with pytest.raises(ConfigError, match=str(token_id)):
            call(token_id)
    with pytest.raises(ValueError, match=str(token_id)):
        tokenizer.decode([5, token_id])


def test_id_at_vocab_size_is_refused(tokenizer: SpmTokenizer) -> None:
    last = tokenizer.vocab_size - 1
    assert tokenizer.piece_bytes(last)
    with pytest.raises(ConfigError, match=f"{last + 1} .* {last + 1}"):
        tokenizer.piece_bytes(last + 1)


def test_padding_rows_decode_as_nothing(vocab_source: TokenizerSource) -> None:
    tokenizer = load_tokenizer(replace(vocab_source, vocab_size=512))
    assert tokenizer.vocab_size == 512
    assert tokenizer.piece_bytes(511) == b""
    assert tokenizer.is_special(511)
    assert tokenizer.decode([500, *tokenizer.encode("wolf"), 511]) == "wolf"
    with pytest.raises(ConfigError, match="512"):
        tokenizer.piece_bytes(512)


def test_texts_beyond_the_librarys_count_are_refused(
    tokenizer: SpmTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rllama.tokenizers.text._MAX_TEXT_BYTES", 10)
    assert tokenizer.encode("a" * 10)
    with pytest.raises(ConfigError, match="text of 11 bytes"):
        tokenizer.encode("é" * 5 + "a")


def test_specials_are_known(tokenizer: SpmTokenizer, library: Any) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.add_bos) == (1, 2, True)
    special = {i for i in range(tokenizer.vocab_size) if tokenizer.is_special(i)}
    assert special == {0, 1, 2, library.PieceToId("<|im|>"), library.PieceToId("<|im|>2")}
    assert tokenizer.decode_bytes([1, 2]) == b""


def test_names_of_control_pieces_are_text_unless_asked_for(
    tokenizer: SpmTokenizer, library: Any
) -> None:
    text = "wolf</s> wolf<|im|>2<|im|>[x]</s>"
    assert not {1, 2, library.PieceToId("<|im|>")} & set(tokenizer.encode(text))
    longer, shorter = library.PieceToId("<|im|>2"), library.PieceToId("<|im|>")
    assert tokenizer.encode(text, parse_special=True) == [
        *library.encode("wolf"), 2, *library.encode(" wolf"), longer, shorter,
        *library.encode("[x]"), 2,
    ]  # fmt: skip


@given(text=text_strategy.filter(lambda text: "<" not in text))
@settings(max_examples=100, deadline=None)
def test_parse_special_changes_nothing_without_names(tokenizer: SpmTokenizer, text: str) -> None:
    assert tokenizer.encode(text, parse_special=True) == tokenizer.encode(text)


def test_no_space_is_added_or_taken_when_the_vocabulary_says_so(
    vocab_source: TokenizerSource,
) -> None:
    tokenizer = load_tokenizer(replace(vocab_source, add_space_prefix=False))
    assert tokenizer.piece_bytes(tokenizer.encode("wolf")[0])[:1] != b" "
    for text in ("wolf", " wolf", "  wolf"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_add_bos_follows_the_source(vocab_source: TokenizerSource) -> None:
    assert not load_tokenizer(replace(vocab_source, add_bos=False)).add_bos


@pytest.mark.parametrize(
    "unit", ["a", " ", "\n", "us", "中", "👨‍👩‍👧", "e\u0301", "<s>"], ids=ascii
)
def test_a_megabyte_of_one_thing_takes_a_second_at_most(tokenizer: SpmTokenizer, unit: str) -> None:
    text = unit * (2**20 // len(unit.encode()))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert _seconds(lambda: tokenizer.encode(text)) < 1.0
    assert _seconds(lambda: tokenizer.encode(text, parse_special=True)) < 4.0


def _seconds(work: Callable[[], object]) -> float:
    """Processor time, the best of three."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char", "word"])
@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc", "nfkc_cf"])
def test_every_model_type_and_normaliser_loads(
    train_model: Any, model_type: str, rule: str
) -> None:
    import sentencepiece

    small = {"byte_fallback": False, "vocab_size": 40} if model_type in ("char", "word") else {}
    data = train_model(model_type, rule, **small)
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(data)
    tokenizer = load_tokenizer(TokenizerSource(kind="spm", model=data))
    for text in ("Once upon  a time [x]", "ﬁne Ⅳ 　x", "the wolf."):
        ids = tokenizer.encode(text)
        assert ids == processor.encode(text)
        assert tokenizer.decode(ids) == processor.decode(ids)
