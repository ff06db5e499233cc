"""Finding and recognising tokenizer files, by content."""

from __future__ import annotations

import math
import os
import re
import struct
from dataclasses import replace

from rllama.config import TokenizerSource
from rllama.errors import ConfigError, FormatError, UnsupportedError
from rllama.formats.files import is_dir, is_file, printable, read_head, read_small
from rllama.formats.gguf_header import MAGIC
from rllama.formats.json_file import read_fields
from rllama.formats.vocabulary import open_gguf_vocabulary

_LIMIT_BYTES = 64 << 20
_SETTINGS_LIMIT_BYTES = 16 << 20  # tokenizer_config.json lists added tokens and templates
_MAX_PIECE_BYTES = 65536
_RECORD = struct.Struct("<fi")
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n")
_NAMES = ("tokenizer.model", "tokenizer.bin", "tokenizer.json")


def tokenizer_source(path: str, *, vocab_size: int | None = None) -> TokenizerSource:
    """The tokenizer in a file or folder that the user names.

    Notes:   a SentencePiece .model, a llama2.c tokenizer.bin, a GGUF; told apart by content
    Raises:  ConfigError if nothing is there or it has more tokens than vocab_size,
             UnsupportedError for a kind that is not read yet, FormatError for anything else
    """
    if is_dir(path):
        found = find_tokenizer(path, vocab_size=vocab_size, strict=True)
        if found is None:
            raise ConfigError(
                f"{printable(path)}: no tokenizer here; looked for {', '.join(_NAMES)}"
            )
        return found
    source = _recognise(path)
    if vocab_size is not None and (source.vocab_size or 0) > vocab_size:
        raise ConfigError(
            f"{printable(path)}: {source.vocab_size} tokens, but the model has only {vocab_size}"
        )
    return source


def find_tokenizer(
    folder: str, *, vocab_size: int | None = None, strict: bool = False
) -> TokenizerSource | None:
    """The tokenizer that lies in a folder beside its model; None if there is none.

    Notes:   tok<vocab_size>.bin goes first, because a folder may serve several models; a kind that
             is not read yet counts as none unless strict
    Raises:  FormatError if a tokenizer.bin is damaged, UnsupportedError if strict
    """
    names = _NAMES if vocab_size is None else (f"tok{vocab_size}.bin", *_NAMES)
    unsupported: UnsupportedError | None = None
    for name in names:
        path = os.path.join(folder, name)
        if not is_file(path):
            continue
        try:
            return _with_folder_settings(_recognise(path), folder)
        except UnsupportedError as error:
            unsupported = unsupported or error
    if strict and unsupported is not None:
        raise unsupported
    return None


def _recognise(path: str) -> TokenizerSource:
    head = read_head(path, 256)
    where = printable(path)
    if head[:4] == MAGIC:
        return open_gguf_vocabulary(path)
    if _looks_like_sentencepiece(head):
        return TokenizerSource(kind="spm", path=path)
    if head.lstrip()[:1] == b"{":
        raise UnsupportedError(f"{where}: tokenizers in the JSON format are not supported")
    if _TIKTOKEN_LINE.match(head):
        raise UnsupportedError(f"{where}: tokenizers in the tiktoken format are not supported")
    count = count_llama2c_pieces(path)
    return TokenizerSource(
        kind="llama2c", path=path, vocab_size=count, add_bos=True,
        bos_token_id=1 if count > 1 else None, eos_token_id=2 if count > 2 else None,
        unk_token_id=0,
    )  # fmt: skip


def _looks_like_sentencepiece(head: bytes) -> bool:
    """A protobuf whose field 1 is a message whose field 1 is a string: the first piece."""
    if head[:1] != b"\x0a":
        return False
    at = 1
    while at < min(len(head), 6) and head[at] & 0x80:
        at += 1
    return head[at + 1 : at + 2] == b"\x0a"


def count_llama2c_pieces(path: str) -> int:
    """Pieces of a llama2.c tokenizer.bin, walking it to its end.

    Raises:  FormatError if it is anything else, or damaged
    """
    data = read_small(path, _LIMIT_BYTES)
    where = printable(path)
    if len(data) < 4 + _RECORD.size:
        raise FormatError(f"{where}: {len(data)} bytes are too few for a tokenizer")
    longest = int.from_bytes(data[:4], "little")
    if not 1 <= longest <= _MAX_PIECE_BYTES:
        raise FormatError(
            f"{where}: not a known tokenizer; as a llama2.c tokenizer its longest piece, at offset "
            f"0, would have {longest} bytes (1 to {_MAX_PIECE_BYTES} are possible)"
        )
    unpack, at, count, end = _RECORD.unpack_from, 4, 0, len(data)
    finite = math.isfinite
    while at < end:
        if at + 8 > end:
            raise FormatError(f"{where}: piece {count} at offset {at} is cut off")
        score, length = unpack(data, at)
        if not 0 <= length <= longest or not finite(score) or at + 8 + length > end:
            raise FormatError(
                f"{where}: piece {count} at offset {at}: length {length} and score {score:g} are "
                f"impossible (longest piece {longest}, file {end} bytes)"
            )
        at += 8 + length
        count += 1
    return count


def _with_folder_settings(source: TokenizerSource, folder: str) -> TokenizerSource:
    """Take add_bos_token from tokenizer_config.json where there is one."""
    path = os.path.join(folder, "tokenizer_config.json")
    if source.kind == "vocab" or not is_file(path):
        return source
    add_bos = read_fields(path, ConfigError, _SETTINGS_LIMIT_BYTES).values.get("add_bos_token")
    return replace(source, add_bos=add_bos) if type(add_bos) is bool else source
