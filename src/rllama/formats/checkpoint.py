"""Checkpoint: what every reader of weight files hands out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rllama.config import ModelConfig, TokenizerSource
from rllama.formats.chat_templates import ChatSource
from rllama.formats.files import printable
from rllama.formats.names import Table, in_file
from rllama.tensor import View


@dataclass(frozen=True, slots=True)
class Extra:
    """A tensor that is no view: the reader has no name of ours for it, or no type.

    Notes:   `role` says in words what it is for, where its name tells; "" where it does not
    """

    name: str
    type_name: str
    shape: tuple[int, ...]
    n_bytes: int
    role: str = ""


@dataclass(slots=True, eq=False)
class Checkpoint:
    """A model on disk: numbers, tensors under canonical names, and where its tokenizer is.

    Notes:   tensors are views into mapped files under the names of `formats/names.py`: all that
             the file has; which of them a model needs, and in what shapes, is for its
             architecture to say (`models/table.py`), as it is what to do about the extras;
             `names` is the file family's rename table, for messages;
             `no_tokenizer` says why there is no tokenizer, where there is none;
             `metadata` is what the file says beside that, for `rllama inspect`
    """

    path: str
    format_name: str
    config: ModelConfig | None
    tensors: Mapping[str, View]
    tokenizer: TokenizerSource | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    on_close: Callable[[], None] | None = None
    extras: tuple[Extra, ...] = ()
    names: Table = field(default_factory=dict)
    chat: ChatSource = field(default_factory=ChatSource)
    no_tokenizer: str = ""

    @property
    def where(self) -> str:
        """The path, for messages."""
        return printable(self.path)

    def name_in_file(self, canonical_name: str) -> str:
        """What this file family calls one of our tensors."""
        return in_file(self.names, canonical_name)

    def close(self) -> None:
        """Drop the views; the mapping goes when nobody holds one any more."""
        self.tensors = {}
        if self.on_close is not None:
            self.on_close()
            self.on_close = None
