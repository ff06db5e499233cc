"""Finding and recognising tokenizer files, by content."""

from __future__ import annotations

import os
import re
from dataclasses import replace

from rllama.config import TokenizerSource
from rllama.errors import ConfigError, FormatError, UnsupportedError
from rllama.formats.files import is_dir, is_file, printable, read_head, read_small
from rllama.formats.gguf_header import MAGIC
from rllama.formats.json_file import SETTINGS_LIMIT_BYTES, read_fields, read_json
from rllama.formats.llama2c_tokenizer import LIMIT_BYTES, read_llama2c_tokenizer
from rllama.formats.unknown import known_kind
from rllama.formats.vocabulary import open_gguf_vocabulary

_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n")
_NAMES = ("tokenizer.json", "tokenizer.model", "tokenizer.bin")
_OLD_NAMES = ("vocab.json", "merges.txt")
_SETTINGS = ("special_tokens_map.json", "tokenizer_config.json")  # the later one counts


def tokenizer_source(path: str, *, vocab_size: int | None = None) -> TokenizerSource:
    """The tokenizer in a file or folder that the user names.

    Notes:   a tokenizer.json, a SentencePiece .model, a tiktoken file, a llama2.c tokenizer.bin, a
             GGUF; told apart by content
    Raises:  ConfigError if nothing is there or it has more tokens than vocab_size,
             UnsupportedError for a kind that is not read, FormatError for anything else
    """
    if is_dir(path):
        found = find_tokenizer(path, vocab_size=vocab_size)
        if found is None:
            raise ConfigError(
                f"{printable(path)}: no tokenizer here; looked for {', '.join(_NAMES)}{_old(path)}"
            )
        return found
    source = _recognise(path)
    if vocab_size is not None and len(source.pieces) > vocab_size:
        raise ConfigError(
            f"{printable(path)}: {len(source.pieces)} tokens, but the model has only {vocab_size}"
        )
    return source


def tokenizer_beside(folder: str, vocab_size: int) -> tuple[TokenizerSource | None, str]:
    """The tokenizer beside a model, or why there is none. Raises FormatError if it is damaged."""
    try:
        found = find_tokenizer(folder, vocab_size=vocab_size)
    except UnsupportedError as error:
        return None, str(error)
    names = ", ".join((f"tok{vocab_size}.bin", *_NAMES))
    where = printable(folder or ".")
    return found, "" if found else f"looked for {names} in {where}{_old(folder)}"


def _old(folder: str) -> str:
    """What to do about a folder that has the two files of old byte-level tokenizers alone."""
    if not all(is_file(os.path.join(folder, name)) for name in _OLD_NAMES):
        return ""
    return (
        f"; {' and '.join(_OLD_NAMES)} alone are not read, because they do not say how text is "
        "cut: make a tokenizer.json of them, once, with transformers' "
        "AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)"
    )


def find_tokenizer(folder: str, *, vocab_size: int | None = None) -> TokenizerSource | None:
    """The tokenizer that lies in a folder beside its model; None if there is none.

    Notes:   tok<vocab_size>.bin goes first, because a folder may serve several models; then
             tokenizer.json, which is what transformers prefers, too
    Raises:  FormatError if the first that is there is damaged, UnsupportedError
    """
    names = _NAMES if vocab_size is None else (f"tok{vocab_size}.bin", *_NAMES)
    for name in names:
        path = os.path.join(folder, name)
        if is_file(path):
            return _with_add_bos(_recognise(path), folder)
    return None


def _recognise(path: str) -> TokenizerSource:
    head = read_head(path, 256)
    if head[:4] == MAGIC:
        return open_gguf_vocabulary(path)
    if _looks_like_sentencepiece(head):
        return TokenizerSource(kind="spm", path=path, model=read_small(path, LIMIT_BYTES))
    if head.lstrip()[:1] == b"{":
        return _read_json_tokenizer(path)
    if _TIKTOKEN_LINE.match(head):
        return TokenizerSource(kind="tiktoken", path=path, model=read_small(path, LIMIT_BYTES))
    try:
        return read_llama2c_tokenizer(path)
    except FormatError as error:
        if kind := known_kind(head):
            raise FormatError(f"{printable(path)}: no tokenizer: {kind}") from error
        raise


def _looks_like_sentencepiece(head: bytes) -> bool:
    """A protobuf whose field 1 is a message whose field 1 is a string: the first piece."""
    if head[:1] != b"\x0a":
        return False
    at = 1
    while at < min(len(head), 6) and head[at] & 0x80:
        at += 1
    return head[at + 1 : at + 2] == b"\x0a"


def _read_json_tokenizer(path: str) -> TokenizerSource:
    """A tokenizer.json; what its special tokens are for stands in files beside it."""
    fields = read_json(path, FormatError, LIMIT_BYTES)
    if not isinstance(fields.get("model"), dict):
        raise FormatError(f"{printable(path)}: no tokenizer: it has no model")
    settings: dict[str, object] = {}
    for name in _SETTINGS:
        beside = os.path.join(os.path.dirname(path), name)
        if is_file(beside):
            settings |= read_json(beside, ConfigError, SETTINGS_LIMIT_BYTES)
    return TokenizerSource(kind="json", path=path, fields=fields, settings=settings)


def _with_add_bos(source: TokenizerSource, folder: str) -> TokenizerSource:
    """Take add_bos_token from tokenizer_config.json where there is one."""
    path = os.path.join(folder, "tokenizer_config.json")
    if source.kind == "json" or not is_file(path):
        return source
    add_bos = read_fields(path, ConfigError, SETTINGS_LIMIT_BYTES).values.get("add_bos_token")
    return replace(source, add_bos=add_bos) if type(add_bos) is bool else source
