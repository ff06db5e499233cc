"""Checks of a vocabulary that lies inside a weight file, before a tokenizer is built from it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rllama.config import TokenizerSource
from rllama.errors import ConfigError, FormatError, UnsupportedError
from rllama.formats.fields import Fields, shown
from rllama.formats.files import printable
from rllama.formats.gguf_header import F32, STRING, GgufArray, GgufHeader, parse
from rllama.formats.mapped_file import MappedFile

_TOKENS = "tokenizer.ggml.tokens"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>", re.ASCII)
_BYTE = 6
_ADD_BOS = "tokenizer.ggml.add_bos_token"
_MERGES = "tokenizer.ggml.merges"
_BYTE_TYPES = (0, 1)  # u8, i8
_KINDS: dict[str, tuple[Literal["vocab", "unigram", "bpe"], dict[str, int]]] = {
    "llama": ("vocab", {"bos": 1, "eos": 2, "unknown": 0}),
    "t5": ("unigram", {"eos": 1, "unknown": 2}),
    "gpt2": ("bpe", {}),
}  # llama.cpp's names, what we call them, and ids that are not written down
_ADDS_BOS = {"vocab": True, "unigram": False, "bpe": None}  # None: as its way of cutting says


def n_tokens(header: GgufHeader) -> int:
    """Pieces of the vocabulary, 0 if there is none. Raises ConfigError if they are no texts."""
    value = header.values.get(_TOKENS)
    if value is None:
        return 0
    if not isinstance(value, GgufArray) or value.element_type != STRING:
        raise ConfigError(f"{header.where}: {_TOKENS} must be an array of strings")
    return value.count


def tokenizer_kind(header: GgufHeader) -> str:
    """What the file calls its tokenizer: "llama", "gpt2", …, or "none"."""
    return shown(header.values.get("tokenizer.ggml.model", "none")).strip("'")


def gguf_vocabulary(header: GgufHeader) -> TokenizerSource:
    """The vocabulary of a GGUF file, checked.

    Raises:  UnsupportedError if there is none or it is of another kind, ConfigError if its lists
             differ in length or type, FormatError for a damaged piece
    """
    count, kind = n_tokens(header), tokenizer_kind(header)
    if count == 0:
        raise UnsupportedError(f"{header.where}: the file holds no vocabulary")
    if kind not in _KINDS:
        raise UnsupportedError(
            f"{header.where}: the tokenizer of kind {kind!r} is not supported; "
            f"{', '.join(_KINDS)} are"
        )
    ours, defaults = _KINDS[kind]
    pieces = header.strings(_TOKENS) or []
    fields = Fields(header.values, header.where)

    def special(name: str) -> int | None:
        key, default = f"tokenizer.ggml.{name}_token_id", defaults.get(name)
        known = default if default is not None and default < count else None
        return fields.token_id(key, count, known)

    source = TokenizerSource(
        kind=ours, path=header.cursor.file.path, pieces=tuple(pieces),
        types=_types(header, pieces, optional=ours == "bpe"),
        bos_token_id=special("bos"), eos_token_id=special("eos"), unk_token_id=special("unknown"),
        add_bos=fields.flag(_ADD_BOS) if _ADD_BOS in fields else _ADDS_BOS[ours],
        add_space_prefix=fields.flag("tokenizer.ggml.add_space_prefix", True),
    )  # fmt: skip
    if ours == "bpe":
        return replace(source, merges=_merges(header), pre=fields.text("tokenizer.ggml.pre", ""))
    scores = _scores(header, count)
    if ours == "vocab":
        return replace(source, scores=scores)
    extra = fields.flag("tokenizer.ggml.remove_extra_whitespaces", False)
    charsmap = _charsmap(header)
    return replace(source, scores=scores, charsmap=charsmap, remove_extra_whitespaces=extra)


def open_gguf_vocabulary(path: str) -> TokenizerSource:
    """The vocabulary of a GGUF file, with or without weights.

    Raises:  UnsupportedError for tokenizers of another kind, FormatError, ConfigError
    """
    with MappedFile(path) as file:
        source = gguf_vocabulary(parse(file))
    file.close()
    return source


def _merges(header: GgufHeader) -> tuple[str, ...]:
    merges = header.strings(_MERGES)
    if merges is None:
        value = header.values.get(_MERGES)
        raise ConfigError(f"{header.where}: {_MERGES} is {shown(str(value))}; an array of strings "
                          "is wanted")  # fmt: skip
    return tuple(merges)


def _charsmap(header: GgufHeader) -> bytes:
    key = "tokenizer.ggml.precompiled_charsmap"
    value = header.values.get(key)
    if value is None:
        return b""
    if not isinstance(value, GgufArray) or value.element_type not in _BYTE_TYPES:
        raise ConfigError(f"{header.where}: {key} is {shown(str(value))}; an array of u8 is wanted")
    return b"" if value.numbers is None else value.numbers.tobytes()


def _scores(header: GgufHeader, count: int) -> tuple[float, ...]:
    scores = _numbers(header, "tokenizer.ggml.scores", count, (F32,))
    if not bool(np.isfinite(scores).all()):
        raise FormatError(f"{header.where}: tokenizer.ggml.scores holds NaN or infinity")
    return tuple(scores.tolist())


def _types(header: GgufHeader, pieces: list[str], *, optional: bool) -> tuple[int, ...]:
    key = "tokenizer.ggml.token_type"
    if optional and key not in header.values:
        return ()
    types = _numbers(header, key, len(pieces), (4, 5))
    if int(types.min()) < 1 or int(types.max()) > _BYTE:
        raise FormatError(f"{header.where}: {key} has a type outside 1..{_BYTE}")
    if not optional:
        _check_bytes(header.where, pieces, types)
    return tuple(types.tolist())


def _numbers(
    header: GgufHeader, key: str, count: int, element_types: tuple[int, ...]
) -> NDArray[np.float32] | NDArray[np.int32]:
    value = header.values.get(key)
    if not isinstance(value, GgufArray) or value.element_type not in element_types:
        raise ConfigError(
            f"{header.where}: {key} is {shown(str(value))}; an array of {count} "
            f"{'f32' if F32 in element_types else 'i32'} is wanted"
        )
    if value.count != count or value.numbers is None:
        raise ConfigError(f"{header.where}: {key} has {value.count} entries, {_TOKENS} has {count}")
    return value.numbers


def _check_bytes(
    where: str, pieces: list[str], types: NDArray[np.float32] | NDArray[np.int32]
) -> None:
    seen: set[int] = set()
    for index in np.flatnonzero(types == _BYTE).tolist():
        match = _BYTE_PIECE.fullmatch(pieces[index])
        value = -1 if match is None else int(match.group(1), 16)
        if value < 0 or value in seen:
            raise FormatError(
                f"{where}: token {index} '{printable(pieces[index])[:40]}' is marked as a byte but "
                f"{'spells none' if value < 0 else 'repeats one'}"
            )
        seen.add(value)
    if seen and len(seen) != 256:
        missing = next(byte for byte in range(256) if byte not in seen)
        raise FormatError(f"{where}: the vocabulary lacks the byte token <0x{missing:02X}>")
