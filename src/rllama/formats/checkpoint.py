"""Checkpoint: what every reader of weight files hands out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rllama.config import ModelConfig, TokenizerSource
from rllama.tensor import TensorView


@dataclass(slots=True, eq=False)
class Checkpoint:
    """A model on disk: numbers, tensors under canonical names, and where its tokenizer is.

    Notes:   tensors are views into mapped files: `embed`, `layers.{i}.attn_norm`, `layers.{i}.wq`
             `wk` `wv` `wo`, `layers.{i}.ffn_norm`, `layers.{i}.w_gate` `w_up` `w_down`,
             `final_norm`, and `lm_head` unless it is tied to `embed`;
             `metadata` is what the file says beside that, for `rllama inspect`
    """

    path: str
    format_name: str
    config: ModelConfig | None
    tensors: Mapping[str, TensorView]
    tokenizer: TokenizerSource | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    on_close: Callable[[], None] | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(view.n_bytes for view in self.tensors.values())

    def close(self) -> None:
        """Drop the views; the mapping goes when nobody holds one any more."""
        self.tensors = {}
        if self.on_close is not None:
            self.on_close()
            self.on_close = None
