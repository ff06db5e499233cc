"""Decoder: what every architecture shares - tensor table, placement, rope table, scratch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from types import SimpleNamespace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from rllama.backend import Backend, KVStore, ScratchSpec, Weight
from rllama.batch import Batch
from rllama.config import ModelConfig
from rllama.dtypes import F16, F32
from rllama.errors import FormatError, UnsupportedError
from rllama.tensor import TensorView

OnProgress = Callable[[int, int], None]  # bytes placed so far, bytes in all

_PER_LAYER = "layers.{i}."


@dataclass(frozen=True, slots=True)
class T:
    """One row of a tensor table: canonical name and shape in config letters ("H*d, D")."""

    name: str
    shape: str
    optional: bool = False


class Decoder:
    """A decoder-only model on a backend. Subclasses name their tensors and write `forward`.

    Notes:   `layers[i]` holds the placed weights of a layer under their short names; tensors
             outside the layers are attributes of the model itself
    Raises:  FormatError where a tensor is missing or has another shape than the table says,
             UnsupportedError where one is there that this architecture has no use for
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
        check_tensors(self.TENSORS, cfg, tensors)
        self.kv_dtype: Literal["f32", "f16"] = natural_kv_dtype(tensors, f16=f16)
        self.layers: list[SimpleNamespace] = [SimpleNamespace() for _ in range(cfg.n_layers)]
        self._place(tensors, f16=f16, on_progress=on_progress)
        self.rope_table = backend.rope_table(max_seq_len or cfg.max_seq_len, inv_freq(cfg))
        self.scratch = backend.scratch(scratch_spec(cfg, max_batch_tokens))

    def forward(self, batch: Batch, kv: KVStore) -> NDArray[np.float32]:
        """Compute one step; the logits of `batch.logit_rows`.

        Shapes:  result [R, V] f32
        """
        raise NotImplementedError

    def _place(
        self, tensors: Mapping[str, TensorView], *, f16: bool, on_progress: OnProgress | None
    ) -> None:
        n_done, n_all = 0, sum(view.n_bytes for view in tensors.values())
        for row, layer, name in expand(self.TENSORS, self.cfg):
            view = tensors.get(name)
            if view is None:
                continue
            be = self.backend
            placed = be.place_norm(view) if len(view.shape) == 1 else be.place(view, f16=f16)
            home = self if layer is None else self.layers[layer]
            setattr(home, row.name.removeprefix(_PER_LAYER), placed)
            n_done += view.n_bytes
            if on_progress is not None:
                on_progress(n_done, n_all)
        if "lm_head" not in tensors:
            self.lm_head = self.embed


def expand(table: tuple[T, ...], cfg: ModelConfig) -> Iterator[tuple[T, int | None, str]]:
    """Every row of a table with its layer (None outside the layers) and its full name."""
    for row in table:
        if row.name.startswith(_PER_LAYER):
            for i in range(cfg.n_layers):
                yield row, i, row.name.format(i=i)
        else:
            yield row, None, row.name


def shape_of(row: T, cfg: ModelConfig) -> tuple[int, ...]:
    """The shape of a row of the table, in numbers."""
    letters = cfg.shape_letters
    return tuple(
        prod(letters[letter.strip()] for letter in axis.split("*")) for axis in row.shape.split(",")
    )


def check_tensors(
    table: tuple[T, ...], cfg: ModelConfig, tensors: Mapping[str, TensorView]
) -> None:
    """Compare a checkpoint with a tensor table. Raises FormatError, UnsupportedError."""
    known = set()
    for row, _, name in expand(table, cfg):
        known.add(name)
        view = tensors.get(name)
        if view is None:
            if not row.optional:
                raise FormatError(_missing(name, tensors))
            continue
        want = shape_of(row, cfg)
        if view.shape != want:
            raise FormatError(
                f"{view.origin}: tensor {name} has shape {list(view.shape)}, but the model's "
                f"numbers say [{row.shape}] = {list(want)}"
            )
    if "lm_head" not in tensors and not cfg.tied_head:
        raise FormatError(_missing("lm_head", tensors) + "; nor is the head tied to the embedding")
    for name, view in tensors.items():
        if name not in known:
            raise UnsupportedError(
                f"{view.origin}: tensor {name} is not part of architecture {cfg.arch!r} as "
                "this version knows it; leaving it out would give wrong text"
            )


def _missing(name: str, tensors: Mapping[str, TensorView]) -> str:
    where = next((view.origin.rsplit(":", 1)[0] for view in tensors.values()), "the checkpoint")
    return f"{where}: tensor {name} is missing ({len(tensors)} tensors found)"


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
