"""Which type each tensor of a model has: one for all, or a mix like those of llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass

from shapes import Shape, tensors

from rllama.dtypes import DTYPES, F32, DType, dtype_by_name
from rllama.errors import UnsupportedError

TYPES = tuple(dtype.name for dtype in DTYPES if dtype.gguf_id is not None)
_MIXES = {"Q4_K_M": ("Q4_K", "Q6_K"), "Q5_K_M": ("Q5_K", "Q6_K")}  # most tensors, and some
NAMES = (*TYPES, *_MIXES)


@dataclass(frozen=True, slots=True)
class Mix:
    """The types of a file's matrices; `better` is what some of them have instead of `base`."""

    name: str
    base: DType
    better: DType

    def dtype_of(self, shape: Shape, tensor: str) -> DType:
        """Notes: which layers are kept better is llama.cpp's rule: the first and last eighth, and
        every third between"""
        if "norm" in tensor:
            return F32
        if tensor == ("token_embd.weight" if shape.tied else "output.weight"):
            return self.better
        if not tensor.endswith(("attn_v.weight", "ffn_down.weight")):
            return self.base
        layer, eighth = int(tensor.split(".")[1]), shape.n_layers // 8
        ends = layer < eighth or layer >= 7 * shape.n_layers // 8
        return self.better if ends or (layer - eighth) % 3 == 2 else self.base

    def step_bytes(self, shape: Shape, n_tokens: int, cached_positions: int) -> int:
        """Bytes that a step must read: every matrix, a row of the embedding per token, the cache.

        Units: cached_positions counts positions of all sequences together; the cache is f16
        """
        cache_bytes = cached_positions * shape.n_layers * 2 * shape.kv_dim * 2
        row = self.dtype_of(shape, "token_embd.weight").row_bytes(shape.dim)
        unread = "" if shape.tied else "token_embd.weight"
        return n_tokens * row + cache_bytes + sum(
            self.dtype_of(shape, name).n_bytes(dims)
            for name, dims in tensors(shape)
            if len(dims) == 2 and name != unread
        )  # fmt: skip


def mix_by_name(name: str) -> Mix:
    """The mix, or the type for all matrices. Raises UnsupportedError where no GGUF has it."""
    if name in _MIXES:
        base, better = map(dtype_by_name, _MIXES[name])
        return Mix(name, base, better)
    dtype = dtype_by_name(name)
    if dtype.gguf_id is None:
        raise UnsupportedError(f"no GGUF holds {dtype.name}; known: {', '.join(NAMES)}")
    return Mix(dtype.name, dtype, dtype)


def mix_for(shape: Shape, name: str) -> Mix:
    """The mix by name. Raises UnsupportedError where no GGUF has it or rows do not fit."""
    mix = mix_by_name(name)
    for tensor, dims in tensors(shape):
        dtype = mix.dtype_of(shape, tensor)
        if len(dims) == 2 and dims[1] % dtype.block_len:
            raise UnsupportedError(
                f"{shape.name} {tensor}: rows of {dims[1]} values are no multiple of the "
                f"{dtype.block_len}-value blocks of {dtype.name}"
            )
    return mix
