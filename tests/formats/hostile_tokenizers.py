"""Tokenizer rows of the corpus of bad files: tokenizer.json, and the list of all others."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hostile_gguf_vocabulary
import hostile_vocabularies
from hostile_case import Case
from hostile_gguf_vocabulary import BYTES
from hostile_vocabularies import blob, charsmaps

from rllama.errors import ConfigError, FormatError, UnsupportedError

Fields = dict[str, Any]
Error = type[Exception] | None
DEEP = 10_000


@cache
def good_text() -> str:
    """A correct tokenizer.json: byte-level BPE, two merges, two special tokens."""
    vocab = {name: i for i, name in enumerate([*BYTES, "ab", "abc"])}
    names = ("<s>", "</s>")
    split = {"type": "Split", "pattern": {"Regex": r"\p{L}+|\s+"}, "behavior": "Isolated",
             "invert": False}  # fmt: skip
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": {"type": "NFC"},
        "added_tokens": [added(258 + i, name) for i, name in enumerate(names)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": {
            "type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [258], "tokens": ["<s>"]}},
        },
        "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False,
                  "byte_fallback": False, "vocab": vocab, "merges": ["a b", ["ab", "c"]]},
    })  # fmt: skip


def added(token_id: int, name: str, **flags: bool) -> Fields:
    """An entry of added_tokens."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": name, **plain, "special": True, **flags}


def good() -> Fields:
    fields: Fields = json.loads(good_text())
    return fields


def cases() -> list[Case]:
    """All tokenizer cases."""
    parts = (_json_text, _json_vocab, _json_merges, _json_patterns, _json_added, _json_parts,
             _json_post, hostile_vocabularies.cases, hostile_gguf_vocabulary.cases)  # fmt: skip
    return [case for part in parts for case in part()]


def edited(
    row: str, variant: str, edit: Callable[[Fields], object], error: Error, says: str = ""
) -> Case:
    """A case that changes the correct tokenizer.json."""

    def make(folder: Path) -> Path:
        fields = good()
        edit(fields)
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(fields))
        return path

    return Case(row, variant, make, error, says)


def put(value: object, *keys: str | int) -> Callable[[Fields], None]:
    """An edit that sets the value at the end of a path of keys."""

    def edit(fields: Fields) -> None:
        at: Any = fields
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = copy.deepcopy(value)

    return edit


def _json_text() -> Iterator[Case]:
    yield edited("K0", "good", lambda f: None, None)
    text = good_text()
    for n in (1, 2, 100, len(text) // 2, len(text) - 1):
        yield blob("K13", f"cut_{n}", text[:n].encode(), FormatError, "JSON|nested")
    deep = '{"model": ' + '{"a": ' * DEEP + "1" + "}" * (DEEP + 1)
    yield blob("K13", "deep_object", deep.encode(), FormatError, "nested|no tokenizer")
    lists = '{"model": {"vocab": ' + "[" * DEEP + "]" * DEEP + "}}"
    yield blob("K13", "deep_list", lists.encode(), FormatError, "nested|vocab")
    yield blob("K8", "twin_key", b'{"model": {"vocab": {"a": 0, "a": 1}}}', FormatError, "twice")
    yield blob("K8", "nan", b'{"model": {"vocab": {"a": NaN}}}', FormatError, "not JSON")
    yield blob("K13", "not_utf8", b'{"model": {"\xff": 1}}', FormatError, "JSON")
    yield blob("K13", "bom", b"\xef\xbb\xbf{}", FormatError, "too few")
    for value in (None, [], "BPE", 3):
        yield edited("K13", f"model_{value!r}", put(value, "model"), FormatError, "no model")


def _json_vocab() -> Iterator[Case]:
    for value in (-1, 2**22, 2**31, 2**64, 10**9, 1.5, True, "1", None, [1]):
        yield edited(
            "K8",
            f"id_{value!r}",
            put(value, "model", "vocab", "ab"),
            FormatError,
            "no whole number",
        )
    yield edited("K8", "twin_id", put(97, "model", "vocab", "ab"), FormatError, "two tokens have")
    yield edited("K8", "hole", put(400, "model", "vocab", "abc"), None)
    for value in ({}, [], None, "ab"):
        yield edited(
            "K8", f"vocab_{value!r}", put(value, "model", "vocab"), FormatError, "0 tokens|voc"
        )
    yield edited(
        "K3", "long_name", put(999, "model", "vocab", "a" * 70_000), FormatError, "characters"
    )
    yield edited("K4", "surrogate", put(999, "model", "vocab", "\ud800"), FormatError, "JSON")
    yield edited("K4", "nul", put(999, "model", "vocab", "\0"), FormatError, "NUL")
    yield edited("K4", "empty_name", put(999, "model", "vocab", ""), None)
    for kind in ("WordPiece", "WordLevel", "Nothing", 7):
        yield edited(
            "K13", f"model_of_{kind}", put(kind, "model", "type"), UnsupportedError, "BPE and"
        )
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        yield edited("K13", key, put("x", "model", key), UnsupportedError, key)
    yield edited("K6", "unk_absent", put("<unk>", "model", "unk_token"), FormatError, "unk_token")
    yield edited("K6", "unk_number", put(3, "model", "unk_token"), FormatError, "unk_token")
    yield from _json_unigram()


def _json_unigram() -> Iterator[Case]:
    def unigram(vocab: object, unk: object = 0) -> Callable[[Fields], None]:
        return put({"type": "Unigram", "vocab": vocab, "unk_id": unk}, "model")

    pairs = [["<unk>", 0.0], ["a", -1.0], ["b", -2.0]]

    def rest(fields: Fields) -> None:
        fields.update(post_processor=None, added_tokens=[])

    def case(row: str, name: str, vocab: object, unk: object, error: Error, says: str) -> Case:
        return edited(row, name, lambda f: (unigram(vocab, unk)(f), rest(f)), error, says)

    yield case("K6", "unigram", pairs, 0, None, "")
    for unk in (-1, 3, None, True, "0"):
        yield case("K6", f"unk_id_{unk!r}", pairs, unk, FormatError, "unk_id")
    for score in (10**38, "1", None, 1e300):
        bad = [*pairs, ["c", score]]
        yield case("K7", f"score_{score!r}", bad, 0, FormatError, "token 3")
    yield case("K8", "unigram_twin", [*pairs, ["a", -3.0]], 0, FormatError, "occurs twice")
    yield case("K6", "unigram_empty", [], 0, FormatError, "0 tokens")
    yield case("K6", "unigram_short", [["a"]], 0, FormatError, "token 0")


def _json_merges() -> Iterator[Case]:
    for merge in ("a", "a b c", "a zz", "b a", "", " ", ["a"], ["a", 1], 7, None, ["a", "b", "c"]):
        yield edited(
            "K9", f"merge_{merge!r}", put(merge, "model", "merges", 0), FormatError, "merge 0"
        )
    for value in (None, {}, "a b", 3):
        yield edited(
            "K9", f"merges_{value!r}", put(value, "model", "merges"), FormatError, "merges: a"
        )
    yield edited("K9", "self_merge", put("a a", "model", "merges", 0), FormatError, "merge 0")
    yield edited("K9", "twin_merge", put(["a b", "a b"], "model", "merges"), None)
    yield edited("K9", "no_merges", put([], "model", "merges"), None)


def _json_patterns() -> Iterator[Case]:
    at = ("pre_tokenizer", "pretokenizers", 0, "pattern")
    slow = (r"(a+)+$", r"(.*)*", r"(x+x+)+y", r"(?<=a+)b", r"(?<!a*)b", r"\s*[\r\n]+", r"(a|a)*b",
            "(" * DEEP + "a" + ")" * DEEP, "a|" * 9 + r"(\w*)*",
            "a" * (1 << 20), "[a-z]+$")  # fmt: skip
    for i, pattern in enumerate(slow):
        yield edited("K10", f"slow_{i}", put({"Regex": pattern}, *at), UnsupportedError, "pattern")
    for i, pattern in enumerate((r"\p{Nothing}", "[z-a]+", r"[\p{Xx}]+")):
        yield edited("K10", f"none_{i}", put({"Regex": pattern}, *at), FormatError, "the pattern")
    for i, pattern in enumerate(("(a", "a)", "*", "[a", "\\")):
        yield edited("K10", f"open_{i}", put({"Regex": pattern}, *at), UnsupportedError, "pattern")
    for value in (None, 3, {"Regex": 3}, {"Other": "a"}, "a", {}):
        yield edited("K10", f"pattern_{value!r}", put(value, *at), FormatError, "refuses it|empty")
    yield edited("K10", "empty_string", put({"String": ""}, *at), FormatError, "empty")
    yield edited("K10", "string", put({"String": "a+"}, *at), None)


def _json_added() -> Iterator[Case]:
    at = ("added_tokens", 0)
    yield edited("K11", "empty", put(added(258, ""), *at), FormatError, "a name of 1 to")
    yield edited(
        "K11", "megabyte", put(added(258, "a" * 2**20), *at), FormatError, "a name of 1 to"
    )
    yield edited(
        "K11", "twin_id", put(added(259, "<x>"), *at), FormatError, "two tokens have one id"
    )
    yield edited(
        "K11", "taken_id", put(added(3, "<x>"), *at), FormatError, "two tokens have one id"
    )
    yield edited("K11", "twin_name", put(added(300, "</s>"), *at), FormatError, "occurs twice")
    for token_id in (-1, None, "258", 1.0, True):
        bad = {**added(258, "<s>"), "id": token_id}
        yield edited(
            "K11", f"id_{token_id!r}", put(bad, *at), FormatError, "without an id|outside 0 to"
        )
    huge = put(added(2**40, "<s>"), *at)
    yield edited("K11", "id_huge", huge, FormatError, "an id outside 0 to")
    for value in ("x", 3, {}):
        yield edited(
            "K11", f"list_{value!r}", put(value, "added_tokens"), FormatError, "a list|names"
        )
    many = [{"id": 258 + i} for i in range(70_000)]
    yield edited("K11", "many", put(many, "added_tokens"), FormatError, "at most 65536")
    yield edited("K11", "entry", put("x", *at), FormatError, "without an id")
    yield edited("K11", "surrogate", put(added(258, "\ud800"), *at), FormatError, "not Unicode")


def _json_parts() -> Iterator[Case]:
    def nested(kind: str, depth: int) -> object:
        value: object = {"type": "NFC"} if kind == "normalizers" else {"type": "ByteLevel"}
        for _ in range(depth):
            value = {"type": "Sequence", kind: [value]}
        return value

    for name, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers"),
                        ("decoder", "decoders"), ("post_processor", "processors")):  # fmt: skip
        yield edited("K13", f"{name}_nested", put(nested(inner, 200), name), FormatError, "nested")
        long = {"type": "Sequence", inner: [{"type": "ByteLevel"}] * 100}
        yield edited("K13", f"{name}_long", put(long, name), FormatError, "filled beyond")
        yield edited("K13", f"{name}_of_new", put({"type": "New"}, name), UnsupportedError, "New")
        for value in (3, "ByteLevel", [], {}, {"type": 3}, {"type": "Sequence", inner: 3}):
            yield edited("K13", f"{name}_{value!r}", put(value, name), FormatError, f"{inner}: ")
    yield edited("K13", "no_decoder", put(None, "decoder"), UnsupportedError, "decoder of no kind")
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    twenty = {"type": "Sequence", "normalizers": [double] * 20}
    yield edited("K12", "bomb", put(twenty, "normalizer"), FormatError, "times as long")
    yield edited(
        "K12", "replace", put({**double, "content": "a" * 9}, "normalizer"), FormatError, "9 t"
    )
    regex = {**double, "pattern": {"Regex": "a*"}, "content": "b" * 9}
    yield edited("K12", "replace_regex", put(regex, "normalizer"), FormatError, "9 times")
    prepend = {"type": "Prepend", "prepend": "a" * 10**6}
    yield edited("K12", "prepend", put(prepend, "normalizer"), FormatError, "prepends more")
    empty = {**double, "pattern": {"String": ""}}
    yield edited("K12", "replace_nothing", put(empty, "normalizer"), FormatError, "empty")
    for i, value in enumerate(_badcharsmaps()):
        bad = {"type": "Precompiled", "precompiled_charsmap": value}
        yield edited(
            "K5", f"charsmap_{i}", put(bad, "normalizer"), FormatError, "precompiled_charsmap"
        )


def _badcharsmaps() -> Iterator[object]:
    yield from ("!!", "", None, 3)
    for charsmap in charsmaps():
        yield base64.b64encode(charsmap).decode()


def _json_post() -> Iterator[Case]:
    special = ("post_processor", "single", 0, "SpecialToken", "id")
    yield edited("K14", "absent_token", put("<x>", *special), FormatError, "names '<x>'")
    yield edited("K14", "number", put(7, *special), FormatError, "names 7|no token")
    yield edited("K14", "list", put([1], *special), FormatError, "no token")
    for value in (None, 3, {}, "A"):
        yield edited(
            "K14", f"single_{value!r}", put(value, "post_processor", "single"), FormatError, "list"
        )
    yield edited("K14", "pieces", put([3, None, {}], "post_processor", "single"), None)
    bert = {"type": "BertProcessing", "sep": ["</s>", 259], "cls": 3}
    yield edited("K14", "bert", put(bert, "post_processor"), None)

    def beside(name: str, content: str, error: Error, says: str) -> Case:
        def make(folder: Path) -> Path:
            (folder / "tokenizer.json").write_text(good_text())
            (folder / "tokenizer_config.json").write_text(content)
            return folder / "tokenizer.json"

        return Case("K14", f"config_{name}", make, error, says)

    yield beside("good", '{"bos_token": "<s>", "eos_token": {"content": "</s>"}}', None, "")
    yield beside("absent", '{"bos_token": "<bos>"}', FormatError, "bos_token '<bos>' is no token")
    yield beside("cut", '{"bos_token": ', ConfigError, "JSON")
    yield beside("list", "[]", ConfigError, "object")
    yield beside(
        "odd", '{"bos_token": 3, "add_bos_token": "yes", "added_tokens_decoder": 3}', None, ""
    )
    yield beside(
        "decoder", '{"added_tokens_decoder": {"x": {"content": "<s>"}}}', FormatError, "an id"
    )
    yield beside(
        "decoder_twin", '{"added_tokens_decoder": {"5": {"content": "<q>"}}}', FormatError, "one"
    )
