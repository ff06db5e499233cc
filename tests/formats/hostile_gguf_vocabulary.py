"""GGUF rows of the corpus of bad files: vocabularies of byte-level BPE and of Unigram."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile_case import Case
from hostile_gguf import base
from hostile_vocabularies import charsmaps
from writers import ARRAY, F32, I32, STRING, U8, U32, RawGguf, gguf_string

from rllama.errors import ConfigError, FormatError, UnsupportedError
from rllama.tokenizers.byte_names import byte_name

Edit = Callable[[RawGguf], object]
Error = type[Exception] | None
BYTES = [byte_name(bytes((value,))) for value in range(256)]


def cases() -> Iterator[Case]:
    """All cases of vocabularies."""
    for part in (_merges, _tokens, _charsmaps):
        yield from part()


def case(row: str, name: str, edit: Edit, error: Error, says: str) -> Case:
    """A case that changes a correct vocabulary of byte-level BPE."""

    def make(folder: Path) -> Path:
        raw = base()
        pieces = [*BYTES, "ab", "<s>", "</s>", "<t>", "<u>", "<v>"]
        kvs: dict[str, tuple[int, object]] = {
            "model": (STRING, "gpt2"), "pre": (STRING, "qwen2"),
            "tokens": (ARRAY, (STRING, pieces)), "merges": (ARRAY, (STRING, ["a b"])),
            "token_type": (ARRAY, (I32, [1] * 257 + [3, 3, 4, 5, 2])),
        }  # fmt: skip
        raw.kvs.update({f"tokenizer.ggml.{key}": value for key, value in kvs.items()})
        edit(raw)
        path = folder / "model"
        path.write_bytes(raw.to_bytes())
        return path

    return Case(row, f"gguf_{name}", make, error, says)


def key(name: str, kind: int, value: object) -> Edit:
    return lambda raw: raw.kvs.__setitem__(f"tokenizer.ggml.{name}", (kind, value))


def without(name: str) -> Edit:
    return lambda raw: raw.kvs.__delitem__(f"tokenizer.ggml.{name}")


def many(name: str, count: int) -> Edit:
    """An array of empty strings, at the end of the keys."""

    def edit(raw: RawGguf) -> None:
        without(name)(raw)
        head = gguf_string(f"tokenizer.ggml.{name}") + struct.pack("<IIQ", ARRAY, STRING, count)
        raw.extra_kvs.append(head + bytes(8 * count))

    return edit


def _merges() -> Iterator[Case]:
    yield case("K0", "good", lambda raw: None, None, "")
    yield case("G49", "no_merges", without("merges"), ConfigError, "merges .*array of strings")
    yield case("G49", "merges_number", key("merges", U32, 3), ConfigError, "array of strings")
    yield case("G49", "merges_of_numbers", key("merges", ARRAY, (I32, [1])), ConfigError, "strings")
    for merge in ("a", "a zz", "a c", "", "<s> a", "a  b"):
        bad = key("merges", ARRAY, (STRING, [merge]))
        yield case("G49", f"merge_{merge!r}", bad, FormatError, "names no tokens")
    for name in ("merges", "tokens"):
        yield case(
            "G49", f"{name}_too_many", many(name, 2**22 + 1), FormatError, "more than 4194304"
        )


def _tokens() -> Iterator[Case]:
    yield case("K9", "no_pre", without("pre"), UnsupportedError, "pre is missing")
    yield case("K9", "new_pre", key("pre", STRING, "x"), UnsupportedError, "known are .*llama-bpe")
    yield case("K9", "pre_number", key("pre", U32, 3), ConfigError, "pre must be a string")
    yield case("K13", "model_new", key("model", STRING, "rwkv"), UnsupportedError, "kind 'rwkv'")
    for kind in (0, 7, -1, 99):
        types = key("token_type", ARRAY, (I32, [1] * 261 + [kind]))
        yield case("K6", f"type_{kind}", types, FormatError, "a type outside 1..6")
    short = key("token_type", ARRAY, (I32, [1] * 9))
    yield case("K6", "types_short", short, ConfigError, "has 9 entries")
    yield case("K6", "no_types", without("token_type"), None, "")
    yield case("K6", "bos", key("bos_token_id", U32, 999), ConfigError, "bos_token_id is 999")
    tokens = [*BYTES, "ab", "ab", "</s>", "<t>", "<u>", "<v>"]
    yield case("K8", "twin", key("tokens", ARRAY, (STRING, tokens)), FormatError, "repeats 'ab'")
    tokens = [*BYTES, "ab", "", "</s>", "<t>", "<u>", "<v>"]
    yield case("K8", "empty", key("tokens", ARRAY, (STRING, tokens)), FormatError, "is empty")
    tokens = [*BYTES[1:], "ab", "<s>", "</s>", "<t>", "<u>", "<v>", "<w>"]
    yield case("K8", "no_byte", key("tokens", ARRAY, (STRING, tokens)), FormatError, "the byte")
    for score in (float("nan"), float("inf"), -float("inf")):

        def unigram(raw: RawGguf, score: float = score) -> None:
            key("model", STRING, "t5")(raw)
            key("scores", ARRAY, (F32, [0.0] * 261 + [score]))(raw)

        yield case("K7", f"score_{score}", unigram, FormatError, "NaN or infinity")


def _charsmaps() -> Iterator[Case]:
    def charsmap(kind: int, items: list[int]) -> Edit:
        def edit(raw: RawGguf) -> None:
            key("model", STRING, "t5")(raw)
            key("scores", ARRAY, (F32, [0.0] * 262))(raw)
            key("precompiled_charsmap", ARRAY, (kind, items))(raw)

        return edit

    yield case("G48", "charsmap_none", charsmap(U8, []), None, "")
    for i, data in enumerate(charsmaps()):
        bad = charsmap(U8, list(data))
        yield case("G48", f"charsmap_{i}", bad, FormatError, "precompiled_charsmap")
    yield case("G48", "charsmap_u32", charsmap(U32, [0]), ConfigError, "an array of u8")
    text = lambda raw: (charsmap(U8, [])(raw), key("precompiled_charsmap", STRING, "x")(raw))  # noqa: E731
    yield case("G48", "charsmap_text", text, ConfigError, "an array of u8")
