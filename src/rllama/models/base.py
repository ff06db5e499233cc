"""Decoder: what every architecture shares - placement, rope table, scratch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from rllama.backend import AttendSpec, Backend, Experts, KVStore, RopeTable, ScratchSpec, Weight
from rllama.batch import Batch
from rllama.config import ModelConfig
from rllama.dtypes import F16, F32, DType
from rllama.models.rope import rotation
from rllama.models.table import PER_EXPERT, PER_LAYER, T, expand, settled
from rllama.tensor import View

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]  # bytes placed so far, bytes in all


@dataclass(eq=False, repr=False)
class Layer:
    """What one layer runs with: its placed weights under their short names, how it turns, attends.

    Notes:   what only some models have is None in the others; `rope` None: no rotation; a vector
             `sinks` goes into the attend_spec; what there is one of for each expert is listed under
             its short name in `of_experts`
    """

    of_experts: dict[str, list[Weight]] = field(default_factory=dict)
    experts: Experts = field(init=False)
    attend_spec: AttendSpec = field(init=False)
    rope: RopeTable | None = None
    attn_norm: Weight | None = None
    bq: Weight | None = None
    bk: Weight | None = None
    bv: Weight | None = None
    bo: Weight | None = None
    q_norm: Weight | None = None
    k_norm: Weight | None = None
    sinks: Weight | None = None
    post_attn_norm: Weight | None = None
    ffn_norm: Weight | None = None
    b_gate: Weight | None = None
    b_up: Weight | None = None
    b_down: Weight | None = None
    post_ffn_norm: Weight | None = None
    b_router: Weight | None = None

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # the tensors that the table names


class Decoder:
    """A decoder-only model on a backend. Subclasses name their tensors and write `forward`.

    Notes:   tensors are as `check_tensors` gave them; `layers[i]` has those of a layer,
             tensors outside the layers are attributes of the model; HF_NAMES and GGUF_NAMES are
             names of tensors that formats/names.py has not (docs/plugins.md)
    """

    TENSORS: ClassVar[tuple[T, ...]] = ()
    HF_NAMES: ClassVar[Mapping[str, str]] = {}
    GGUF_NAMES: ClassVar[Mapping[str, str]] = {}

    embed: Weight
    final_norm: Weight
    lm_head: Weight

    def __init__(
        self,
        cfg: ModelConfig,
        tensors: Mapping[str, View],
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
        self.layers = [Layer() for _ in range(cfg.n_layers)]
        self._place(tensors, f16=f16, on_progress=on_progress)
        self._rotate(max_seq_len or cfg.max_seq_len)
        for i, layer in enumerate(self.layers):
            layer.attend_spec = self._attend_spec(i)
        self.scratch = backend.scratch(scratch_spec(cfg, max_batch_tokens))

    @classmethod
    def adapt(cls, fields: dict[str, object]) -> Mapping[str, object]:
        """The keys of a config.json or a GGUF as their readers know them, before they are read."""
        return fields

    @classmethod
    def config(cls, fields: Mapping[str, object], cfg: ModelConfig) -> ModelConfig:
        """The numbers of a model, given what its file says and what was read from that."""
        return cfg

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
            window=cfg.window(i),
            sinks=self.layers[i].sinks,
        )

    def _rotate(self, max_seq_len: int) -> None:
        """Give every layer the table of its kind."""
        cfg = self.cfg
        tables: dict[bool, RopeTable] = {}
        for i, layer in enumerate(self.layers):
            local = cfg.local_rope_theta is not None and cfg.window(i) > 0
            if i in cfg.unrotated_layers:
                continue
            if local not in tables:
                turn = rotation(cfg, max_seq_len, local=local)
                if cfg.rope_scaling is not None and cfg.rope_scaling.kind in (
                    "dynamic",
                    "longrope",
                ):
                    log.info("rotations are those of a context of %d positions", max_seq_len)
                tables[local] = self.backend.rope_table(
                    max_seq_len, turn.inv_freq, turn.factor, cfg.head_dim
                )
            layer.rope = tables[local]

    def _place(
        self, tensors: Mapping[str, View], *, f16: bool, on_progress: OnProgress | None
    ) -> None:
        n_done, n_all = 0, sum(view.n_bytes for view in tensors.values())
        for row, layer, name in expand(settled(self.TENSORS, tensors), self.cfg):
            home = self if layer is None else self.layers[layer]
            for short, view in self._pieces(row, tensors[name]):
                placed = self._placed(short, view, f16=f16)
                if isinstance(home, Layer) and short.startswith(PER_EXPERT):
                    home.of_experts.setdefault(short.removeprefix(PER_EXPERT), []).append(placed)
                else:
                    setattr(home, short, placed)
            n_done += tensors[name].n_bytes
            if on_progress is not None:
                on_progress(n_done, n_all)
        if self.cfg.tied_head:
            self.lm_head = self.embed

    def _pieces(self, row: T, view: View) -> Iterator[tuple[str, View]]:
        """What a row of the table is placed as: itself, or each of its parts."""
        if not row.parts:
            yield row.name.removeprefix(PER_LAYER), view
            return
        first = 0
        heights = self.cfg.sizes(row.shape.partition(",")[0].replace("+", ","))
        for part, height in zip(row.parts, heights, strict=True):
            yield part.removeprefix(PER_LAYER), view.rows(first, first + height)
            first += height

    def _placed(self, short: str, view: View, *, f16: bool) -> Weight:
        if len(view.shape) > 1:
            return self.backend.place(view, f16=f16)
        offset = self.cfg.norm_offset if short.endswith("norm") else 0.0
        return self.backend.place_norm(view, offset)


def scratch_spec(cfg: ModelConfig, max_tokens: int) -> ScratchSpec:
    """The activation widths of a model."""
    return ScratchSpec(
        dim=cfg.dim,
        q_dim=cfg.n_heads * cfg.head_dim,
        kv_dim=cfg.n_kv_heads * cfg.head_dim,
        ffn_dim=cfg.ffn_dim,
        max_tokens=max_tokens,
    )


def natural_kv_dtype(tensors: Mapping[str, View], *, f16: bool = False) -> Literal["f32", "f16"]:
    """What `kv_dtype="auto"` means for these weights: f32 where they are held as F32, else f16.

    Notes: all matrices have to be; norms are F32 in nearly every file and do not count
    """
    matrices = [view.dtype for view in tensors.values() if len(view.shape) > 1]
    return "f32" if not f16 and matrices and all(d is F32 for d in matrices) else "f16"


def held_dtype(view: View, *, f16: bool) -> DType:
    """The type that a tensor has in memory."""
    return F16 if f16 and f16_copy_bytes(view) else view.dtype


def f16_copy_bytes(view: View) -> int:
    """Bytes that a tensor takes anew under `f16=True`; 0 where it stays in the file."""
    if len(view.shape) < 2 or not view.dtype.is_float or view.dtype is F16:
        return 0
    return F16.n_bytes(view.shape)
