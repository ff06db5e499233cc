"""Text to token ids and back: one door for every kind of tokenizer file."""

from __future__ import annotations

import os
import re
import stat
from typing import Literal

from rllama.config import TokenizerSource
from rllama.errors import FormatError, UnsupportedError
from rllama.tokenizers.base import Tokenizer

TokenizerKind = Literal["spm", "llama2c", "gguf", "tiktoken", "hf", "unknown"]

_HEAD_BYTES = 4096
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
_KNOWN = "expected a SentencePiece .model or a llama2.c tokenizer.bin"


def load_tokenizer(source: TokenizerSource | str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer that a file or a checkpoint holds.

    Notes:   a file is recognised by its content, its name does not matter; a checkpoint's own
             vocabulary comes as a TokenizerSource of kind "vocab"
    Raises:  FormatError if the file is missing, damaged or foreign, or has more pieces than the
             model has rows; UnsupportedError for kinds that this version does not read
    """
    from rllama.tokenizers import spm_load

    if not isinstance(source, TokenizerSource):
        path = os.fspath(source)
        kind: TokenizerKind = sniff(path)
        source = TokenizerSource(kind="llama2c" if kind == "llama2c" else "spm", path=path)
    elif source.kind == "vocab":
        return spm_load.load_vocabulary(source, source.path or "vocabulary")
    elif source.path is None:
        raise FormatError(f"a tokenizer of kind {source.kind!r} needs a path")
    else:
        path = source.path
        # a damaged file may look like nothing at all: its reader can say what is wrong with it
        kind = sniff(path)
        kind = source.kind if kind == "unknown" else kind
    return _load_file(path, kind, source)


def _load_file(path: str, kind: TokenizerKind, source: TokenizerSource) -> Tokenizer:
    from rllama.tokenizers import spm_load

    if kind == "spm":
        return spm_load.load_spm(_read(path), source, path)
    if kind == "llama2c":
        return spm_load.load_llama2c(_read(path), source, path)
    if kind == "unknown":
        raise FormatError(f"{path}: not a tokenizer file; {_KNOWN}")
    raise UnsupportedError(f"{path}: a tokenizer of kind {kind} is not read here; {_KNOWN}")


def sniff(path: str | os.PathLike[str]) -> TokenizerKind:
    """What kind of tokenizer file this is, by its first bytes.

    Raises:  FormatError if there is no such file, or it is no regular one
    """
    from rllama.tokenizers.llama2c_bin import looks_like_llama2c

    head = _read(os.fspath(path), _HEAD_BYTES)
    if head.startswith(b"GGUF"):
        return "gguf"
    if head.lstrip()[:1] == b"{":
        return "hf"
    if _TIKTOKEN_LINE.match(head):
        return "tiktoken"
    if looks_like_llama2c(head):
        return "llama2c"
    # the first field of a SentencePiece model is a piece: tag, length, then the piece's text
    if head[:1] == b"\x0a" and b"\x0a" in head[2:6]:
        return "spm"
    return "unknown"


def _read(path: str, n_bytes: int | None = None) -> bytes:
    from rllama.tokenizers.vocabulary import MAX_FILE_BYTES

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FormatError(f"{path}: not a regular file; {_KNOWN}")
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1 if n_bytes is None else n_bytes)
    except (OSError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FormatError(f"{path}: cannot read the tokenizer: {reason}") from None
    if len(data) > MAX_FILE_BYTES:
        raise FormatError(f"{path}: more than {MAX_FILE_BYTES} bytes is no tokenizer; {_KNOWN}")
    return data
