"""Finding and recognising tokenizer files, by content."""

from __future__ import annotations

import os
import re
from dataclasses import replace

from rllama.config import TokenizerSource
from rllama.errors import ConfigError, UnsupportedError
from rllama.formats.files import is_dir, is_file, printable, read_head, read_small
from rllama.formats.gguf_header import MAGIC
from rllama.formats.json_file import read_fields
from rllama.formats.llama2c_tokenizer import LIMIT_BYTES, read_llama2c_tokenizer
from rllama.formats.vocabulary import open_gguf_vocabulary

_SETTINGS_LIMIT_BYTES = 16 << 20  # tokenizer_config.json lists added tokens and templates
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
    if vocab_size is not None and len(source.pieces) > vocab_size:
        raise ConfigError(
            f"{printable(path)}: {len(source.pieces)} tokens, but the model has only {vocab_size}"
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
        return TokenizerSource(kind="spm", path=path, model=read_small(path, LIMIT_BYTES))
    if head.lstrip()[:1] == b"{":
        raise UnsupportedError(f"{where}: tokenizers in the JSON format are not supported")
    if _TIKTOKEN_LINE.match(head):
        raise UnsupportedError(f"{where}: tokenizers in the tiktoken format are not supported")
    return read_llama2c_tokenizer(path)


def _looks_like_sentencepiece(head: bytes) -> bool:
    """A protobuf whose field 1 is a message whose field 1 is a string: the first piece."""
    if head[:1] != b"\x0a":
        return False
    at = 1
    while at < min(len(head), 6) and head[at] & 0x80:
        at += 1
    return head[at + 1 : at + 2] == b"\x0a"


def _with_folder_settings(source: TokenizerSource, folder: str) -> TokenizerSource:
    """Take add_bos_token from tokenizer_config.json where there is one."""
    path = os.path.join(folder, "tokenizer_config.json")
    if not is_file(path):
        return source
    add_bos = read_fields(path, ConfigError, _SETTINGS_LIMIT_BYTES).values.get("add_bos_token")
    return replace(source, add_bos=add_bos) if type(add_bos) is bool else source
