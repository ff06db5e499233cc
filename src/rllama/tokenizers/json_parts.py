"""The parts of a tokenizer.json around its vocabulary, checked before the library sees them."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rllama.errors import FormatError, UnsupportedError
from rllama.tokenizers.byte_names import named_bytes
from rllama.tokenizers.charsmap import check_charsmap
from rllama.tokenizers.library import guarded
from rllama.tokenizers.safe_pattern import safe_pattern
from rllama.tokenizers.vocabulary import byte_value

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Part = Mapping[str, object]

_MAX_DEPTH, _MAX_STEPS = 8, 64
_MAX_GROWTH, _MAX_PREPEND = 8.0, 1024
_MARK = "\u2581"
_NORMALIZERS = (
    "BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled",
    "Prepend", "Replace", "Strip", "StripAccents",
)  # fmt: skip
_PRE_TOKENIZERS = (
    "BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation",
    "Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spelling:
    """How token names become bytes: byte-level, or with marks for spaces and byte pieces."""

    is_byte_level: bool
    strips_space: bool = False
    has_byte_pieces: bool = False

    def bytes_of(self, name: str) -> bytes:
        """The bytes that a token adds to a text."""
        if self.is_byte_level:
            return named_bytes(name)
        value = self.byte_of(name)
        return name.replace(_MARK, " ").encode() if value is None else bytes((value,))

    def byte_of(self, name: str) -> int | None:
        """The value of a byte piece such as `<0x0A>`."""
        return byte_value(name.encode()) if self.has_byte_pieces else None


def steps(part: object, inner: str, where: str, depth: int = 0) -> Iterator[Part]:
    """The steps of a part, those of sequences one after another.

    Raises:  FormatError for what is no object with a type, or nested too deeply
    """
    if part is None:
        return
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise FormatError(f"{where}: {inner}: an object with a type is wanted")
    if part["type"] != "Sequence":
        yield part
        return
    children = part.get(inner)
    if not isinstance(children, Sequence) or depth == _MAX_DEPTH or len(children) > _MAX_STEPS:
        raise FormatError(f"{where}: {inner}: a sequence nested or filled beyond any use")
    for child in children:
        yield from steps(child, inner, where, depth + 1)


def parts_of(fields: Part, where: str) -> Tokenizer:
    """Normaliser and pre-tokeniser, in a library tokenizer without a vocabulary.

    Raises:  UnsupportedError for steps that are not known or may take more than linear time
    """
    from tokenizers import Tokenizer

    normalizers = list(steps(fields.get("normalizer"), "normalizers", where))
    cuts = list(steps(fields.get("pre_tokenizer"), "pretokenizers", where))
    _check_normalizers(normalizers, where)
    for step in cuts:
        _known(step, _PRE_TOKENIZERS, "pre_tokenizer", where)
    skeleton: dict[str, object] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": _sequence("normalizers", [_safe(s, where) for s in normalizers]),
        "pre_tokenizer": _sequence("pretokenizers", [_safe(s, where) for s in cuts]),
        "post_processor": None, "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }  # fmt: skip
    text = json.dumps(skeleton)
    return guarded(lambda: Tokenizer.from_str(text), where)


def _sequence(inner: str, parts: list[Part]) -> Part | None:
    if len(parts) == 1:
        return parts[0]
    return {"type": "Sequence", inner: parts} if parts else None


def _known(step: Part, known: tuple[str, ...], what: str, where: str) -> None:
    if step["type"] not in known:
        raise UnsupportedError(f"{where}: {what} of type {ascii(step['type'])[:40]}; known are "
                               f"{', '.join(known)}")  # fmt: skip


def _safe(step: Part, where: str) -> Part:
    """The step, its pattern checked."""
    pattern = step.get("pattern")
    if isinstance(pattern, Mapping) and isinstance(pattern.get("Regex"), str):
        return {**step, "pattern": {"Regex": safe_pattern(str(pattern["Regex"]), where)}}
    if pattern == {"String": ""}:
        raise FormatError(f"{where}: a pattern that is empty")
    return step


def _check_normalizers(parts: list[Part], where: str) -> None:
    growth = 1.0
    for step in parts:
        _known(step, _NORMALIZERS, "normalizer", where)
        if step["type"] == "Replace":
            growth *= max(1.0, _growth(step))
        elif step["type"] == "Prepend" and len(str(step.get("prepend", ""))) > _MAX_PREPEND:
            raise FormatError(f"{where}: a normalizer that prepends more than {_MAX_PREPEND} "
                              "characters")  # fmt: skip
        elif step["type"] == "Precompiled":
            _check_precompiled(step.get("precompiled_charsmap"), where)
    if growth > _MAX_GROWTH:
        raise FormatError(f"{where}: normalizers that make a text {growth:.3g} times as long; at "
                          f"most {_MAX_GROWTH:g} is accepted")  # fmt: skip


def _growth(step: Part) -> float:
    """By how much a replacement may make a text longer, in bytes."""
    pattern = step.get("pattern")
    text = pattern.get("String") if isinstance(pattern, Mapping) else None
    n_replaced = len(text.encode()) if isinstance(text, str) else 1
    return len(str(step.get("content", "")).encode()) / max(n_replaced, 1)


def _check_precompiled(value: object, where: str) -> None:
    try:
        blob = base64.b64decode(value if isinstance(value, str) else "!", validate=True)
    except (binascii.Error, ValueError):
        raise FormatError(f"{where}: precompiled_charsmap is no base64") from None
    check_charsmap(blob, where)
    try:
        blob[4 + int.from_bytes(blob[:4], "little") :].decode()
    except UnicodeDecodeError:
        raise FormatError(
            f"{where}: precompiled_charsmap replaces with what is not UTF-8"
        ) from None


def spelling_of(fields: Part, where: str) -> Spelling:
    """What the decoder makes of token names.

    Raises:  UnsupportedError for a decoder whose text is not the sum of its tokens' texts
    """
    parts = [s for s in steps(fields.get("decoder"), "decoders", where) if s["type"] != "Fuse"]
    kinds = [str(step["type"]) for step in parts]
    if kinds == ["ByteLevel"]:
        return Spelling(is_byte_level=True)
    if kinds == ["Metaspace"] and parts[0].get("replacement") == _MARK:
        scheme = parts[0].get("prepend_scheme", "always")
        strips = scheme != "never" and parts[0].get("add_prefix_space", True) is not False
        return Spelling(is_byte_level=False, strips_space=strips)
    if (
        kinds
        and set(kinds) <= {"Replace", "ByteFallback", "Strip", "Metaspace"}
        and all(map(_is_plain, parts))
    ):
        strips = "Strip" in kinds or "Metaspace" in kinds
        return Spelling(False, strips, "ByteFallback" in kinds)
    raise UnsupportedError(
        f"{where}: a decoder of {' and '.join(kinds) or 'no kind'}; ByteLevel, Metaspace, and "
        "Replace with ByteFallback and Strip are known"
    )


def _is_plain(step: Part) -> bool:
    if step["type"] == "Replace":
        return step.get("pattern") == {"String": _MARK} and step.get("content") == " "
    if step["type"] == "Strip":
        return (step.get("content"), step.get("start"), step.get("stop")) == (" ", 1, 0)
    if step["type"] == "Metaspace":
        return step.get("replacement") == _MARK
    return True
