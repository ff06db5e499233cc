"""Weight files: one reader per family, and `open_checkpoint`, which finds the right one."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Protocol

from rllama.errors import ConfigError, FormatError, RllamaError
from rllama.formats import gguf, gguf_split, huggingface, llama2c, llama2rs, meta_pth
from rllama.formats.checkpoint import Checkpoint
from rllama.formats.files import is_dir, is_file, list_dir, printable, stat_path
from rllama.formats.folders import refuse_adapter, require_there, what_is_there
from rllama.formats.hparams import FindArch
from rllama.formats.tokenizer_files import find_tokenizer, tokenizer_source
from rllama.formats.unknown import describe
from rllama.formats.vocabulary import open_gguf_vocabulary

__all__ = [
    "READERS",
    "Checkpoint",
    "find_tokenizer",
    "open_checkpoint",
    "open_gguf_vocabulary",
    "tokenizer_source",
]

_LOOKED_FOR = (
    "a GGUF file, *.safetensors or pytorch_model*.bin (with config.json), consolidated.*.pth (with "
    "params.json) or another torch file, a llama2.c or llama2.rs .bin"
)
_MAX_LISTED = 2000


class Reader(Protocol):
    """A module that reads one family of weight files."""

    NAME: str

    def sniff(self, path: str) -> bool: ...
    def open(
        self,
        path: str,
        *,
        param_path: str | None = None,
        lenient: bool = False,
        find_arch: FindArch | None = None,
    ) -> Checkpoint: ...


READERS: tuple[Reader, ...] = (gguf, huggingface, meta_pth, llama2c, llama2rs)
_OF_FOLDERS: tuple[Reader, ...] = (huggingface, meta_pth)  # a folder as a whole may be theirs


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    param_path: str | os.PathLike[str] | None = None,
    tokenizer_path: str | os.PathLike[str] | None = None,
    lenient: bool = False,
    find_arch: FindArch | None = None,
) -> Checkpoint:
    """Open a model file or folder; its kind is found by content, never by name.

    Notes:   nothing is read but headers and vocabulary, weights stay mapped; whether the tensors
             are those of the architecture is not looked at here;
             lenient also opens what can be listed but not run (its config is None);
             find_arch raises UnsupportedError for architectures that cannot run; None: all can
    Raises:  ConfigError if the path is wrong or ambiguous, FormatError if the file is damaged,
             UnsafeFileError if it reaches out of its folder, UnsupportedError if we cannot run it
    """
    name = os.fspath(path)
    reader, target = _find_reader(name)
    params = None if param_path is None else os.fspath(param_path)
    checkpoint = reader.open(target, param_path=params, lenient=lenient, find_arch=find_arch)
    if tokenizer_path is None:
        return checkpoint
    config = checkpoint.config
    try:
        source = tokenizer_source(
            os.fspath(tokenizer_path), vocab_size=None if config is None else config.vocab_size
        )
    except BaseException:
        checkpoint.close()
        raise
    return replace(checkpoint, tokenizer=source, no_tokenizer="")


def _find_reader(path: str) -> tuple[Reader, str]:
    require_there(path)
    refuse_adapter(path)
    if is_dir(path):
        return _look_inside(path)
    for reader in READERS:
        if reader.sniff(path):
            return reader, path
    raise FormatError(describe(path))


def _look_inside(folder: str) -> tuple[Reader, str]:
    """The one model in a folder. Raises FormatError if there is none, ConfigError if several."""
    found: list[tuple[Reader, str]] = []
    found += [(reader, folder) for reader in _OF_FOLDERS if reader.sniff(folder)]
    for name in list_dir(folder)[:_MAX_LISTED]:
        path = os.path.join(folder, name)
        if is_file(path) and stat_path(path).st_size:
            claimed = {huggingface.NAME, *(r.NAME for r, whose in found if whose == folder)}
            # as for a path that is named: some safetensors files begin like a pickle, too
            first = next((reader for reader in READERS if _sniffs(reader, path)), None)
            if first is not None and first.NAME not in claimed:
                found.append((first, path))
    found = _without_side_files(_without_later_pieces(found))
    where = printable(folder)
    if not found:
        seen = what_is_there(folder)
        raise FormatError(f"{where}: no weights in this folder; looked for {_LOOKED_FOR}{seen}")
    if len(found) > 1:
        choices = ", ".join(
            reader.NAME if path == folder else printable(os.path.basename(path))
            for reader, path in found[:8]
        )
        raise ConfigError(f"{where}: several models in this folder ({choices}); name one of them")
    return found[0]


def _without_later_pieces(found: list[tuple[Reader, str]]) -> list[tuple[Reader, str]]:
    """Of a model in several GGUF files the first alone."""
    paths = {path for _, path in found}

    def is_later(path: str) -> bool:
        folder, name = os.path.split(path)
        first = os.path.join(folder, gguf_split.first_piece(name))
        return first != path and first in paths

    return [(reader, path) for reader, path in found if not is_later(path)]


def _without_side_files(found: list[tuple[Reader, str]]) -> list[tuple[Reader, str]]:
    """Where there is a choice, no torch files that hold something else than a model of Meta's:
    those of Hugging Face, which its reader opens by the folder, states of optimisers."""
    if len(found) < 2:
        return found
    return [(reader, path) for reader, path in found
            if reader is not meta_pth or is_dir(path) or meta_pth.holds_model(path)]  # fmt: skip


def _sniffs(reader: Reader, path: str) -> bool:
    try:
        return reader.sniff(path)
    except RllamaError:
        return False  # unreadable files beside a model do not matter
