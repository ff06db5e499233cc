"""Decoder: what every architecture shares - placement, rope table, scratch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from rllama.backend import AttendSpec, Backend, KVStore, ScratchSpec, Weight
from rllama.batch import Batch
from rllama.config import ModelConfig
from rllama.dtypes import F16, F32
from rllama.models.table import PER_LAYER, T, expand
from rllama.tensor import TensorView

OnProgress = Callable[[int, int], None]  # bytes placed so far, bytes in all


class Decoder:
    """A decoder-only model on a backend. Subclasses name their tensors and write `forward`.

    Notes:   tensors are as `check_tensors` gave them; `layers[i]` holds the placed weights of a
             layer under their short names, and its attend_spec; a vector `sinks` goes into that;
             tensors outside the layers are attributes of the model
    """

    TENSORS: ClassVar[tuple[T, ...]] = ()

    embed: Weight
    final_norm: Weight
    lm_head: Weight

    def __init__(
        self,
        cfg: ModelConfig,
        tensors: Mapping[str, TensorView],
        backend: Backend,
        *,
        f16: bool = False,
        max_batch_tokens: int = 512,
        max_seq_len: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.cfg = cfg
        self.backend = backend
        self.kv_dtype: Literal["f32", "f16"] = natural_kv_dtype(tensors, f16=f16)
        self.layers: list[SimpleNamespace] = [SimpleNamespace() for _ in range(cfg.n_layers)]
        self._place(tensors, f16=f16, on_progress=on_progress)
        for i, layer in enumerate(self.layers):
            layer.attend_spec = self._attend_spec(i)
        self.rope_table = backend.rope_table(max_seq_len or cfg.max_seq_len, inv_freq(cfg))
        self.scratch = backend.scratch(scratch_spec(cfg, max_batch_tokens))

    def forward(self, batch: Batch, kv: KVStore) -> NDArray[np.float32]:
        """Compute one step; the logits of `batch.logit_rows`.

        Shapes:  result [R, V] f32
        """
        raise NotImplementedError

    def _attend_spec(self, i: int) -> AttendSpec:
        cfg = self.cfg
        return self.backend.attend_spec(
            i,
            scale=cfg.head_dim**-0.5 if cfg.attn_scale is None else cfg.attn_scale,
            softcap=cfg.attn_softcap,
            window=cfg.windows[i] if cfg.windows else 0,
            sinks=getattr(self.layers[i], "sinks", None),
        )

    def _place(
        self, tensors: Mapping[str, TensorView], *, f16: bool, on_progress: OnProgress | None
    ) -> None:
        n_done, n_all = 0, sum(view.n_bytes for view in tensors.values())
        for row, layer, name in expand(self.TENSORS, self.cfg):
            view, be = tensors[name], self.backend
            placed = be.place_norm(view) if len(view.shape) == 1 else be.place(view, f16=f16)
            home = self if layer is None else self.layers[layer]
            setattr(home, row.name.removeprefix(PER_LAYER), placed)
            n_done += view.n_bytes
            if on_progress is not None:
                on_progress(n_done, n_all)
        if self.cfg.tied_head:
            self.lm_head = self.embed


def inv_freq(cfg: ModelConfig) -> NDArray[np.float64]:
    """Radians per position of every rotated pair.

    Shapes:  [d/2] f64
    Source:  arXiv 2104.09864
    """
    exponent = np.arange(0, cfg.head_dim, 2, dtype=np.float64) / cfg.head_dim
    return 1.0 / cfg.rope_theta**exponent


def scratch_spec(cfg: ModelConfig, max_tokens: int) -> ScratchSpec:
    """The activation widths of a model."""
    return ScratchSpec(
        dim=cfg.dim,
        q_dim=cfg.n_heads * cfg.head_dim,
        kv_dim=cfg.n_kv_heads * cfg.head_dim,
        ffn_dim=cfg.ffn_dim,
        max_tokens=max_tokens,
    )


def natural_kv_dtype(
    tensors: Mapping[str, TensorView], *, f16: bool = False
) -> Literal["f32", "f16"]:
    """What `kv_dtype="auto"` means for these weights: f32 where they are held as F32, else f16.

    Notes: all matrices have to be; norms are F32 in nearly every file and do not count
    """
    matrices = [view.dtype for view in tensors.values() if len(view.shape) > 1]
    return "f32" if not f16 and matrices and all(d is F32 for d in matrices) else "f16"


def f16_copy_bytes(view: TensorView) -> int:
    """Bytes that a tensor takes anew under `f16=True`; 0 where it stays in the file."""
    if len(view.shape) < 2 or not view.dtype.is_float or view.dtype is F16:
        return 0
    return F16.n_bytes(view.shape)
