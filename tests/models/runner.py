"""Tiny models made of views, and a runner that feeds them steps by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from formats.writers import Tensors

from rllama.backend import KVSpec, KVStore
from rllama.batch import Batch
from rllama.config import ModelConfig
from rllama.cpu import CpuBackend
from rllama.dtypes import dtype_by_name
from rllama.kv_groups import KVGroup
from rllama.loader import open_model
from rllama.models import find
from rllama.models.base import Decoder
from rllama.quant import dequantize, quantize
from rllama.tensor import TensorView

PAGE = 64


def views_of(tensors: Tensors, kind: str) -> dict[str, TensorView]:
    """Tensors as a file of that type would hold them; vectors stay F32."""
    views = {}
    for name, values in tensors.items():
        dtype = dtype_by_name(kind if values.ndim > 1 else "F32")
        data = memoryview(quantize(dtype.name, values).tobytes())
        views[name] = TensorView(data, dtype, values.shape, f"test:{name}")
    return views


def float64_of(views: Mapping[str, TensorView]) -> dict[str, np.ndarray]:
    """What the views really hold."""
    return {
        name: dequantize(view.dtype.name, view.data, view.shape).astype(np.float64)
        for name, view in views.items()
    }


class Runner:
    """A model with a cache, fed by hand."""

    def __init__(self, model: Decoder, n_pages: int = 16) -> None:
        cfg = model.cfg
        self.model = model
        self.n_pages = n_pages
        group = KVGroup(tuple(range(cfg.n_layers)), 0, n_pages)
        spec = KVSpec((group,), cfg.n_kv_heads, cfg.head_dim, PAGE, model.kv_dtype)
        self.kv: KVStore = model.backend.kv_store(spec)

    def run(self, pieces: list[tuple[list[int], int, list[int]]]) -> np.ndarray:
        """Logits of all tokens of one step; a piece is (token ids, first position, pages)."""
        token_ids = [token_id for ids, _, _ in pieces for token_id in ids]
        positions = [first + j for ids, first, _ in pieces for j in range(len(ids))]
        seq_start = np.cumsum([0] + [len(ids) for ids, _, _ in pieces])
        table = np.full((len(pieces), max(len(pages) for _, _, pages in pieces)), -1)
        for row, (_, _, pages) in zip(table, pieces, strict=True):
            row[: len(pages)] = pages
        arrays = (token_ids, positions, seq_start, [table], range(len(token_ids)))
        batch = Batch(*(np.array(array, dtype=np.int32) for array in arrays))
        return np.array(self.model.forward(batch, self.kv))


def make(
    cfg: ModelConfig, views: Mapping[str, TensorView], isa: str | None = None, *, f16: bool = False
) -> Runner:
    backend = CpuBackend(isa=isa, n_threads=2)
    return Runner(find(cfg.arch)(cfg, views, backend, f16=f16, max_batch_tokens=64))


def tokens(cfg: ModelConfig, n: int, seed: int = 5) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, cfg.vocab_size, n)]


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


def open_runner(path: Path, max_seq_len: int | None = None) -> Runner:
    """The model of a file or folder as the loader opens it, with a cache for a thousand tokens."""
    checkpoint = open_model(path)
    cfg = checkpoint.config
    assert cfg is not None
    backend = CpuBackend(n_threads=2)
    model = find(cfg.arch)(
        cfg, checkpoint.tensors, backend, max_batch_tokens=512, max_seq_len=max_seq_len
    )
    return Runner(model)


def in_chunks(runner: Runner, ids: list[int], size: int) -> np.ndarray:
    """Logits of all tokens of one sequence that comes in pieces of some size."""
    pages = list(range(runner.n_pages))
    steps = [runner.run([(ids[at : at + size], at, pages)]) for at in range(0, len(ids), size)]
    return np.concatenate(steps)
