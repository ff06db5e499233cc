"""Text in increments: whole characters, stop texts over token borders, the first space."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllama.config import TokenizerSource
from rllama.engine.detokenize import Detokenizer
from rllama.errors import ConfigError
from rllama.tokenizers import load_tokenizer
from rllama.tokenizers.base import Tokenizer

WORDS = (
    "\u2581",
    "\u2581Once",
    "\u2581there",
    ",",
    "a",
    "ab",
    "b",
    "\u2581a",
    "é",
    "🦙",
    "END",
    "E",
)
FIRST_WORD = 3 + 256


def make_tokenizer(*, add_space_prefix: bool = True) -> Tokenizer:
    """Control pieces, the 256 bytes, and a few words."""
    pieces = ("<unk>", "<s>", "</s>", *(f"<0x{v:02X}>" for v in range(256)), *WORDS)
    return load_tokenizer(
        TokenizerSource(
            kind="vocab", pieces=pieces, scores=tuple(-float(i) for i in range(len(pieces))),
            types=(2, 3, 3, *[6] * 256, *[1] * len(WORDS)), bos_token_id=1, eos_token_id=2,
            unk_token_id=0, add_space_prefix=add_space_prefix,
        )
    )  # fmt: skip


TOKENIZER = make_tokenizer()
id_lists = st.lists(st.integers(0, FIRST_WORD + len(WORDS) - 1) | st.sampled_from(
    [0, 1, 2, FIRST_WORD, FIRST_WORD + 1, FIRST_WORD + 8, 3 + 0xF0, 3 + 0x9F, 3 + 0xA6, 3 + 0x99]
), max_size=24)  # fmt: skip


def word(piece: str) -> int:
    return FIRST_WORD + WORDS.index(piece)


def byte(value: int) -> int:
    return 3 + value


def spelled(text: str) -> list[int]:
    """One token per byte."""
    return [byte(value) for value in text.encode()]


def pushed(
    ids: Sequence[int], stop: tuple[str, ...] = (), prompt: Sequence[int] = (5,)
) -> tuple[list[str], Detokenizer]:
    detokenizer = Detokenizer(TOKENIZER, prompt, stop)
    texts = [detokenizer.push(i) for i in ids]
    return [*texts, detokenizer.flush()], detokenizer


def cut(text: str, stops: Sequence[str]) -> str:
    """The oracle: the text up to the stop that ends first, of those the longest."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


def test_characters_appear_whole() -> None:
    texts, _ = pushed([word("a"), *spelled("é🦙"), word("🦙")])
    assert texts == ["a", "", "é", "", "", "", "🦙", "🦙", ""]


def test_broken_characters_become_the_replacement_character() -> None:
    texts, _ = pushed([byte(0xF0), byte(0x9F), word("a"), byte(0xFF), byte(0xE2), byte(0x82)])
    assert texts == ["", "", "\ufffda", "\ufffd", "", "", "\ufffd"]


@given(ids=id_lists)
@settings(max_examples=500, deadline=None)
def test_increments_together_are_the_whole_decode(ids: list[int]) -> None:
    texts, _ = pushed(ids, prompt=())
    assert "".join(texts) == TOKENIZER.decode(ids)


@given(ids=id_lists)
@settings(max_examples=300, deadline=None)
def test_increments_after_a_prompt_are_the_rest_of_the_whole(ids: list[int]) -> None:
    prompt = [1, word("\u2581Once")]
    texts, _ = pushed(ids, prompt=prompt)
    whole = TOKENIZER.decode_bytes([*prompt, *ids])
    assert "".join(texts) == whole[len("Once") :].decode("utf-8", "replace")


@given(ids=id_lists)
@settings(max_examples=300, deadline=None)
def test_what_was_shown_never_changes(ids: list[int]) -> None:
    texts, _ = pushed(ids, prompt=())
    shown = ""
    for i, text in enumerate(texts[:-1], 1):
        shown += text
        n_held = len(TOKENIZER.decode(ids[:i])) - len(shown)
        assert TOKENIZER.decode(ids[:i]).startswith(shown)
        assert 0 <= n_held <= 3


@pytest.mark.parametrize("prompt", [(), (1,), (1, 2, 1)])
def test_without_a_prompt_text_the_first_space_goes(prompt: tuple[int, ...]) -> None:
    texts, _ = pushed([1, word("\u2581there"), word("\u2581there")], prompt=prompt)
    assert texts == ["", "there", " there", ""]


def test_after_a_prompt_the_first_space_stays() -> None:
    for ids, wanted in (((","), ","), (("\u2581there",), " there")):
        texts, _ = pushed([word(piece) for piece in ids], prompt=(1, word("\u2581Once")))
        assert texts == [wanted, ""]


def test_a_space_that_is_a_token_goes_alone() -> None:
    texts, _ = pushed([word("\u2581"), word("\u2581there")], prompt=(1,))
    assert texts == ["", " there", ""]


def test_a_space_from_a_byte_is_real() -> None:
    texts, _ = pushed([byte(0x20), word("a")], prompt=(1,))
    assert texts == [" ", "a", ""]


def test_no_space_goes_where_encoding_adds_none() -> None:
    detokenizer = Detokenizer(make_tokenizer(add_space_prefix=False), (1,))
    assert detokenizer.push(word("\u2581there")) == " there"


def test_stop_over_token_borders_is_cut_with_all_that_follows() -> None:
    texts, detokenizer = pushed([word("a"), *spelled("ENDxyz")], stop=("END",))
    assert texts == ["a", "", "", "", "", "", "", ""]
    assert detokenizer.stopped


def test_stop_within_a_token_keeps_what_is_before() -> None:
    texts, detokenizer = pushed([word("\u2581Once"), word("a")], stop=("nc",))
    assert texts == [" O", "", ""]
    assert detokenizer.stopped


def test_possible_stop_is_shown_once_it_cannot_be_one() -> None:
    texts, detokenizer = pushed([*spelled("ENENx")], stop=("END",))
    assert texts == ["", "", "EN", "", "ENx", ""]
    assert not detokenizer.stopped


def test_possible_stop_is_shown_at_the_end() -> None:
    texts, detokenizer = pushed(spelled("xEN"), stop=("END",))
    assert texts == ["x", "", "", "EN"]
    assert not detokenizer.stopped
    assert detokenizer.flush() == ""


def test_stop_may_hold_characters_of_several_bytes() -> None:
    texts, detokenizer = pushed(spelled("aé🦙b"), stop=("é🦙",))
    assert "".join(texts) == "a"
    assert detokenizer.stopped


def test_stop_may_be_completed_by_the_flush() -> None:
    texts, detokenizer = pushed([word("a"), byte(0xF0)], stop=("a\ufffd",))
    assert texts == ["", "", ""]
    assert detokenizer.stopped


def test_of_several_stops_the_first_to_end_counts_then_the_longest() -> None:
    assert "".join(pushed(spelled("xabcd"), stop=("abcd", "bc"))[0]) == "xa"
    assert "".join(pushed(spelled("xabcd"), stop=("bc", "abc"))[0]) == "x"


def test_control_tokens_do_not_break_a_stop() -> None:
    texts, detokenizer = pushed([byte(0x45), 2, byte(0x4E), 1, byte(0x44)], stop=("END",))
    assert "".join(texts) == ""
    assert detokenizer.stopped


@given(
    ids=st.lists(st.sampled_from([word("a"), word("b"), word("ab"), word("\u2581a"), byte(0x61),
                                  byte(0xC3), byte(0xA9), word("é"), 1]), max_size=30),
    stops=st.lists(st.text("ab é", min_size=1, max_size=5), max_size=3),
)  # fmt: skip
@settings(max_examples=800, deadline=None)
def test_text_is_the_whole_cut_at_the_stop(ids: list[int], stops: list[str]) -> None:
    texts, detokenizer = pushed(ids, stop=tuple(stops), prompt=(1,))
    whole = TOKENIZER.decode(ids)
    assert "".join(texts) == cut(whole, stops)
    assert detokenizer.stopped == any(stop in whole for stop in stops)


@given(
    ids=st.lists(st.sampled_from([word("a"), word("b"), word("ab")]), max_size=20),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_only_what_may_begin_a_stop_is_held(ids: list[int], stops: list[str]) -> None:
    detokenizer = Detokenizer(TOKENIZER, (5,), tuple(stops))
    shown = whole = ""
    for token_id in ids:
        whole += TOKENIZER.piece_bytes(token_id).decode()
        shown += detokenizer.push(token_id)
        if detokenizer.stopped:
            break
        held = whole[len(shown) :]
        assert whole.startswith(shown)
        assert not held or any(stop.startswith(held) for stop in stops)


def test_ids_outside_are_refused() -> None:
    detokenizer = Detokenizer(TOKENIZER, (5,))
    with pytest.raises(ConfigError, match="99999"):
        detokenizer.push(99999)
    with pytest.raises(ConfigError, match="-1"):
        Detokenizer(TOKENIZER, (-1,))


def test_cost_does_not_grow_with_a_long_held_text() -> None:
    stop = "a" * 20_000 + "b"
    detokenizer = Detokenizer(TOKENIZER, (5,), (stop,))
    start = time.process_time()
    texts = [detokenizer.push(word("a")) for _ in range(60_000)]
    assert time.process_time() - start < 5.0
    assert "".join(texts) == "a" * 40_000
    assert detokenizer.flush() == "a" * 20_000
