"""Checks of a vocabulary that lies inside a weight file, before a tokenizer is built from it."""

from __future__ import annotations

import re

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


def gguf_vocabulary(header: GgufHeader) -> TokenizerSource | None:
    """The vocabulary of a GGUF file, checked; None if it is not of the SentencePiece kind.

    Raises:  ConfigError if its lists differ in length or type, FormatError for a damaged piece
    """
    count = n_tokens(header)
    if tokenizer_kind(header) != "llama" or count == 0:
        return None
    scores = _numbers(header, "tokenizer.ggml.scores", count, (F32,))
    types = _numbers(header, "tokenizer.ggml.token_type", count, (4, 5))
    pieces = header.strings(_TOKENS) or []
    _check(header.where, pieces, scores, types)
    fields = Fields(header.values, header.where)

    def special(name: str, default: int) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        return fields.token_id(key, count, default if default < count else None)

    return TokenizerSource(
        kind="vocab", path=header.cursor.file.path, pieces=tuple(pieces),
        scores=tuple(scores.tolist()), types=tuple(types.tolist()),
        bos_token_id=special("bos", 1), eos_token_id=special("eos", 2),
        unk_token_id=special("unknown", 0),
        add_bos=fields.flag("tokenizer.ggml.add_bos_token", True),
        add_space_prefix=fields.flag("tokenizer.ggml.add_space_prefix", True),
    )  # fmt: skip


def open_gguf_vocabulary(path: str) -> TokenizerSource:
    """The vocabulary of a GGUF file, with or without weights.

    Raises:  UnsupportedError for tokenizers of another kind, FormatError, ConfigError
    """
    with MappedFile(path) as file:
        header = parse(file)
        source = gguf_vocabulary(header)
    file.close()
    if source is None:
        kind = tokenizer_kind(header)
        raise UnsupportedError(f"{file.where}: the tokenizer of kind {kind!r} is not supported")
    return source


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


def _check(
    where: str,
    pieces: list[str],
    scores: NDArray[np.float32] | NDArray[np.int32],
    types: NDArray[np.float32] | NDArray[np.int32],
) -> None:
    if not bool(np.isfinite(scores).all()):
        raise FormatError(f"{where}: tokenizer.ggml.scores holds NaN or infinity")
    if int(types.min()) < 1 or int(types.max()) > _BYTE:
        raise FormatError(f"{where}: tokenizer.ggml.token_type has a type outside 1..{_BYTE}")
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
