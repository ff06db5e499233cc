"""tokenizer.json: the ids of the tokenizers library, texts that come back, settings beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from random_texts import texts
from small_tokenizers import ADDED, MAKERS, SPECIAL
from tokenizers import Tokenizer as Library

from rllama import load_tokenizer
from rllama.config import TokenizerSource
from rllama.errors import ConfigError, FormatError, RllamaError, UnsupportedError
from rllama.tokenizers import load_tokenizer as tokenizer_of
from rllama.tokenizers.base import Tokenizer

make = cache(lambda name: MAKERS[name]())
KINDS = tuple(MAKERS)
LOSSY = ("qwen2", "unigram")  # they normalise


def fields_of(name: str = "llama3") -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(make(name))
    return fields


def source_of(fields: dict[str, Any], **settings: object) -> TokenizerSource:
    return TokenizerSource(kind="json", path="t.json", fields=fields, settings=settings)


def compare(name: str, n: int, seed: int) -> int:
    """Texts whose ids are not the library's, special tokens split and parsed."""
    ours = tokenizer_of(source_of(fields_of(name)))
    split, parsed = Library.from_str(make(name)), Library.from_str(make(name))
    split.encode_special_tokens = True
    wrong = 0
    for text in texts(n, seed, SPECIAL + ADDED):
        plain = split.encode(text, add_special_tokens=False).ids
        full = parsed.encode(text, add_special_tokens=False).ids
        wrong += ours.encode(text) != plain
        wrong += ours.encode(text, parse_special=True) != full
        for ids in (plain, full):
            joined = b"".join(map(ours.piece_bytes, ids))
            assert ours.decode_bytes(ids) in (joined, joined[1:])
    return wrong


@pytest.mark.parametrize("name", KINDS)
def test_json_ids_are_the_librarys(name: str) -> None:
    assert compare(name, 240, 5) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_json_ids_are_the_librarys_on_20000_texts(name: str) -> None:
    assert compare(name, 20_000, 6) == 0


@pytest.mark.parametrize("name", [name for name in KINDS if name not in LOSSY])
def test_json_texts_come_back(name: str) -> None:
    ours = tokenizer_of(source_of(fields_of(name)))
    for text in texts(400, 8):
        marked = text.replace("\u2581", " ") if name in ("llama2", "mistral") else text
        if name == "mistral" and marked.startswith(" "):
            continue  # it puts no space in front then, and takes one away all the same
        if not set(ADDED) & {text[i : i + n] for n in (2, 4) for i in range(len(text))}:
            assert ours.decode(ours.encode(text)) == marked


def test_json_ids_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    for name in KINDS:
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=Library.from_str(make(name)))
        ours = tokenizer_of(source_of(fields_of(name)))
        for text in texts(80, 11, SPECIAL):
            for split in (True, False):
                ids = theirs.encode(text, add_special_tokens=False, split_special_tokens=split)
                assert ours.encode(text, parse_special=not split) == ids, (name, text)


@pytest.mark.parametrize("name", KINDS)
def test_json_special_names_stay_text_unless_asked_for(name: str) -> None:
    ours = tokenizer_of(source_of(fields_of(name)))
    special = {i for i in range(ours.n_pieces) if ours.is_special(i)}
    text = "".join(SPECIAL) + " <s></s><unk>"
    assert not special & set(ours.encode(text)) - {ours.encode("\U0010ffff")[-1]}
    ids = ours.encode(text, parse_special=True)
    found = [ours.token_text(i) for i in ids if i in special]
    assert [name for name in found if name in SPECIAL] == list(SPECIAL)
    assert ours.decode_bytes([i for i in ids if i in special]) == b""


def test_json_special_tokens_are_found_under_their_own_name_alone() -> None:
    fields = fields_of("qwen2") | {"normalizer": {"type": "NFKC"}}
    for token in fields["added_tokens"]:
        token["normalized"] = True
    ours = tokenizer_of(source_of(fields))
    wide = "\uff3b\uff29\uff2e\uff33\uff34\uff3d"  # NFKC makes [INST] of it
    assert not any(map(ours.is_special, ours.encode(wide, parse_special=True)))
    assert any(map(ours.is_special, ours.encode("[INST]", parse_special=True)))


@pytest.mark.parametrize("name", KINDS)
def test_json_special_names_in_the_vocabulary_stay_text(name: str) -> None:
    fields = fields_of(name)
    vocab = fields["model"]["vocab"]
    ids = vocab if isinstance(vocab, dict) else {x: i for i, (x, _) in enumerate(vocab)}
    named = {token["content"] for token in fields["added_tokens"]}
    word = max(sorted(ids.keys() - named), key=len)
    token_id = ids[word]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    fields["added_tokens"].append({"id": token_id, "content": word, "special": True, **flags})
    fields["model"]["ignore_merges"] = True
    ours = tokenizer_of(source_of(fields))
    assert ours.is_special(token_id)
    assert ours.encode(word, parse_special=True).count(token_id) == 1
    text = word.replace("\u0120", " ").replace("\u2581", " ")
    assert token_id not in ours.encode(text) + ours.encode(word)


@pytest.mark.parametrize("name", KINDS)
def test_json_lone_surrogates_and_nul(name: str) -> None:
    ours = tokenizer_of(source_of(fields_of(name)))
    assert ours.encode("a\ud800b") == ours.encode("a\ufffdb")
    assert ours.encode("\ud83d\ude00") == ours.encode("😀")
    assert ours.encode("") == []
    assert "a\0b" in ours.decode(ours.encode("a\0b")) or name == "unigram"


@pytest.mark.parametrize("token_id", [-1, 10**6, 2**32])
def test_json_ids_outside_are_refused(token_id: int) -> None:
    ours = tokenizer_of(replace(source_of(fields_of()), vocab_size=1000))
    assert (ours.vocab_size, ours.piece_bytes(999)) == (1000, b"")
    assert ours.is_special(999)
    assert ours.token_text(999) == ""
    for ask in (ours.piece_bytes, ours.is_special, ours.token_text):
        with pytest.raises(ConfigError, match="outside the vocabulary of 1000"):
            ask(token_id)


def test_json_with_more_tokens_than_the_model_has_rows_is_refused() -> None:
    with pytest.raises(FormatError, match="not this model's tokenizer"):
        tokenizer_of(replace(source_of(fields_of()), vocab_size=300))


def test_json_added_tokens_show_their_names() -> None:
    ours = tokenizer_of(source_of(fields_of()))
    for name in ADDED:
        (token_id,) = ours.encode(name)
        assert ours.piece_bytes(token_id) == name.encode()


def loaded(folder: Path, fields: dict[str, Any], **files: object) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return load_tokenizer(folder)


def test_json_bos_and_eos_stand_beside_it(tmp_path: Path) -> None:
    fields = fields_of("smollm")
    ours = loaded(tmp_path, fields)
    assert (ours.bos_token_id, ours.eos_token_id, ours.add_bos) == (None, None, False)
    ours = loaded(tmp_path, fields, special_tokens_map={"bos_token": {"content": "<|end|>"}})
    assert ours.token_text(ours.bos_token_id or 0) == "<|end|>"
    settings = {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>", "lstrip": False}}
    ours = loaded(tmp_path, fields, tokenizer_config=settings)
    assert ours.bos_token_id is not None
    assert ours.eos_token_id is not None
    assert ours.token_text(ours.bos_token_id) == "<|begin|>"
    assert ours.token_text(ours.eos_token_id) == "<|end|>"
    assert not ours.add_bos
    assert ours.encode("wolf", add_bos=True) == [ours.bos_token_id, *ours.encode("wolf")]


def test_json_add_bos_is_the_settings_word_or_the_post_processors(tmp_path: Path) -> None:
    assert tokenizer_of(source_of(fields_of("llama3"))).add_bos
    assert not tokenizer_of(source_of(fields_of("smollm"))).add_bos
    assert not tokenizer_of(source_of(fields_of("llama3"), add_bos_token=False)).add_bos
    settings = {"bos_token": "<|begin|>", "add_bos_token": True}
    assert tokenizer_of(source_of(fields_of("smollm"), **settings)).add_bos
    other = source_of(fields_of("llama3"), bos_token="<|end|>")
    assert not tokenizer_of(other).add_bos


def test_json_post_processor_never_adds_anything() -> None:
    ours = tokenizer_of(source_of(fields_of("llama3")))
    assert ours.bos_token_id not in ours.encode("wolf")
    assert ours.encode("wolf", add_bos=True)[0] == ours.bos_token_id


def test_json_config_says_more_about_added_tokens() -> None:
    fields = fields_of("smollm")
    plain = tokenizer_of(source_of(fields))
    (tool,) = plain.encode("<tool>")
    special = {"content": "<tool>", "special": True}
    ours = tokenizer_of(source_of(fields, added_tokens_decoder={str(tool): special}))
    assert ours.is_special(tool)
    assert ours.encode("<tool>") != [tool]
    last = {str(ours.n_pieces): {"content": "<new>", "special": False, "normalized": False}}
    longer = tokenizer_of(source_of(fields, added_tokens_decoder=last))
    assert longer.encode("<new>") == [ours.n_pieces]
    named = tokenizer_of(source_of(fields, additional_special_tokens=["<tool>", "wolf"]))
    assert not named.is_special(tool)  # it is an added token already, with a mind of its own


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", ["llama2", "mistral"])
def test_json_byte_pieces_among_the_added_tokens_still_stand_for_bytes(
    name: str, special: bool
) -> None:
    fields = fields_of(name)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    for piece in names:
        token_id = fields["model"]["vocab"][piece]
        entry = {"id": token_id, "content": piece, "special": special, **flags}
        fields["added_tokens"].append(entry)
    fields["added_tokens"].sort(key=lambda entry: entry["id"])
    ours = tokenizer_of(source_of(fields))
    split, parsed = (Library.from_str(json.dumps(fields)) for _ in "12")
    split.encode_special_tokens = True
    for text in [*texts(60, 9, (*SPECIAL, *names[:3])), "\U0001f9ff\x00", "a<0x41>b", "\u4e16"]:
        assert ours.encode(text) == split.encode(text, add_special_tokens=False).ids
        full = parsed.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, parse_special=True) == full
    ids = ours.encode("\U0001f9ff")
    assert [ours.token_text(i) for i in ids[-4:]] == ["<0xF0>", "<0x9F>", "<0xA7>", "<0xBF>"]
    assert ours.decode(ids) == "\U0001f9ff"
    assert not any(map(ours.is_special, ids))


Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("edit", "error", "says"),
    [
        (lambda f: f["model"].update(dropout=0.1), UnsupportedError, "dropout"),
        (lambda f: f["model"].update(type="WordPiece"), UnsupportedError, "WordPiece"),
        (lambda f: f.update(decoder=None), UnsupportedError, "decoder of no kind"),
        (lambda f: f.update(decoder={"type": "WordPiece"}), UnsupportedError, "decoder of WordP"),
        (lambda f: f.update(normalizer={"type": "New"}), UnsupportedError, "normalizer of type"),
        (lambda f: f.update(pre_tokenizer={"type": "New"}), UnsupportedError, "pre_tokenizer of"),
        (lambda f: f["added_tokens"][0].update(id=70), FormatError, "two tokens have one id"),
    ],
)
def test_json_parts_that_change_the_ids_are_refused(
    edit: Edit, error: type[RllamaError], says: str
) -> None:
    fields = fields_of()
    edit(fields)
    with pytest.raises(error, match=says) as caught:
        tokenizer_of(source_of(fields))
    assert str(caught.value).startswith("t.json: ")
