"""The byte-level vocabulary of a GGUF: every way of cutting, user-defined and control tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from random_texts import texts
from small_tokenizers import byte_level
from tokenizers import AddedToken, Regex, pre_tokenizers
from tokenizers import Tokenizer as Library

from rllama.config import TokenizerSource
from rllama.errors import FormatError, RllamaError, UnsupportedError
from rllama.tokenizers import load_tokenizer
from rllama.tokenizers.patterns import PRES

USER, CONTROL = ("<tool>", "    ", "ééé"), ("<|begin|>", "<|im_end|>", "<|end|>")
SPLITS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


@cache
def trained() -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(byte_level())
    return fields


def gguf_source(pre: str = "llama-bpe", **changes: Any) -> TokenizerSource:
    """A trained vocabulary as a GGUF reader hands it over, special tokens first and last."""
    model = trained()["model"]
    normal = sorted(model["vocab"], key=model["vocab"].__getitem__)
    pieces = (CONTROL[0], *normal, *USER, *CONTROL[1:])
    types = (3, *[1] * len(normal), *[4] * len(USER), 3, 3)
    merges = tuple(" ".join(merge) for merge in model["merges"])
    source = TokenizerSource(
        kind="bpe", path="m.gguf", pieces=pieces, types=types, merges=merges, pre=pre,
        bos_token_id=0, eos_token_id=len(pieces) - 1,
    )  # fmt: skip
    return replace(source, **changes)


def library_of(pre: str) -> Library:
    """The same as a tokenizer.json: ids one higher, special tokens added behind."""
    fields = trained()
    own = {**fields, "added_tokens": [], "post_processor": None, "pre_tokenizer": None}
    own["model"] = {**fields["model"], "ignore_merges": PRES[pre].ignore_merges}
    library = Library.from_str(json.dumps(own))
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in PRES[pre].patterns]
    library.pre_tokenizer = pre_tokenizers.Sequence([*steps, SPLITS])
    library.add_tokens([AddedToken(name, normalized=False) for name in USER])
    library.add_special_tokens([AddedToken(name, normalized=False) for name in CONTROL[1:]])
    return library


@pytest.mark.parametrize("pre", sorted(PRES))
def test_gguf_bpe_ids_are_the_librarys(pre: str) -> None:
    ours, library = load_tokenizer(gguf_source(pre)), library_of(pre)
    for text in texts(60, 31, USER + CONTROL[1:]):
        full = [i + 1 for i in library.encode(text).ids]
        assert ours.encode(text, parse_special=True) == full
        library.encode_special_tokens = True
        plain = [i + 1 for i in library.encode(text).ids]
        library.encode_special_tokens = False
        assert ours.encode(text) == plain
        assert ours.decode(plain) == text
        assert ours.decode_bytes(full) == b"".join(map(ours.piece_bytes, full))


@pytest.mark.slow
@pytest.mark.parametrize("pre", ["llama-bpe", "llama4", "qwen2", "smollm", "deepseek-llm"])
def test_gguf_bpe_ids_are_the_librarys_on_20000_texts(pre: str) -> None:
    ours, library = load_tokenizer(gguf_source(pre)), library_of(pre)
    for text in texts(20_000, 32, USER):
        assert ours.encode(text) == [i + 1 for i in library.encode(text).ids]


def test_gguf_bpe_special_tokens_have_their_ids() -> None:
    ours = load_tokenizer(gguf_source())
    n_pieces = len(gguf_source().pieces)
    assert ours.encode("".join(CONTROL), parse_special=True) == [0, n_pieces - 2, n_pieces - 1]
    assert ours.encode("x", add_bos=True)[0] == 0
    assert ours.stop_token_ids == (n_pieces - 2, n_pieces - 1)
    assert {i for i in range(n_pieces) if ours.is_special(i)} == {0, n_pieces - 2, n_pieces - 1}
    assert not {0, n_pieces - 2, n_pieces - 1} & set(ours.encode("".join(CONTROL)))
    assert [ours.token_text(i) for i in (0, n_pieces - 1)] == [CONTROL[0], CONTROL[2]]
    assert ours.piece_bytes(n_pieces - 3) == "ééé".encode()


def test_gguf_bpe_end_of_message_is_no_end_where_turns_have_one() -> None:
    pieces = (*gguf_source().pieces, "<|return|>", "<|call|>")
    source = gguf_source(pieces=pieces, types=(*gguf_source().types, 3, 3))
    ours = load_tokenizer(source)
    shown = [ours.token_text(i) for i in ours.stop_token_ids]
    assert shown == ["<|im_end|>", "<|return|>", "<|call|>"]


@pytest.mark.parametrize(("pre", "adds"), [("llama-bpe", True), ("tekken", True), ("qwen2", False)])
def test_gguf_bpe_adds_bos_as_its_kind_does(pre: str, adds: bool) -> None:
    assert load_tokenizer(gguf_source(pre)).add_bos is adds
    assert load_tokenizer(gguf_source(pre, add_bos=not adds)).add_bos is not adds


def changed(name: str, at: int, value: object) -> Callable[[], TokenizerSource]:
    def make() -> TokenizerSource:
        source = gguf_source()
        values = list(getattr(source, name))
        values[at] = value
        return replace(source, **{name: tuple(values)})

    return make


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: gguf_source("new-kind"), UnsupportedError, "pre is 'new-kind'; known are .*llama"),
        (lambda: gguf_source(""), UnsupportedError, "pre is missing; convert"),
        (changed("merges", 3, "a"), FormatError, "the merge 'a' names no tokens"),
        (changed("merges", 3, "qq zz"), FormatError, "the merge 'qq zz' names no tokens"),
        (changed("merges", 3, "<|begin|> a"), FormatError, "names no tokens"),
        (changed("merges", 3, ""), FormatError, "names no tokens"),
        (changed("pieces", 9, ""), FormatError, "token 9 is empty"),
        (changed("pieces", 9, "!"), FormatError, "repeats '!'"),
        (changed("pieces", 5, "qqq"), FormatError, "no token for the byte"),
        (changed("pieces", 300, "x" * 70_000), FormatError, "token 300 has 70000 characters"),
        (lambda: gguf_source(pieces=()), FormatError, "0 tokens"),
        (lambda: gguf_source(bos_token_id=10**6), FormatError, "bos id 1000000"),
        (lambda: gguf_source(vocab_size=9), FormatError, "not this model's tokenizer"),
    ],
)
def test_gguf_bpe_damage_is_refused(
    make: Callable[[], TokenizerSource], error: type[RllamaError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        load_tokenizer(make())
    assert str(caught.value).startswith("m.gguf: ")
    assert str(caught.value).isprintable()
