"""One tensor out of the shards of a Meta checkpoint: pieces of rows, of columns, or copies."""

from __future__ import annotations

from rllama.errors import FormatError
from rllama.tensor import JoinedView, TensorView, View

_COLUMNS = (".wo", ".w_down")  # their inputs are spread over the shards
_SHARED_HEADS = (".wk", ".wv")  # repeated where there are more shards than heads of keys


def merge(name: str, parts: list[TensorView], *, dim: int, kv_dim: int) -> View:
    """The whole of a tensor whose pieces are given in the order of the shards.

    Units:   dim is the model's width, kv_dim that of all heads of keys
    Notes:   nothing is copied. Vectors are the same in every shard. Embeddings are cut into
             columns by LLaMA and Llama 2, into rows by Llama 3: their width tells
    Raises:  FormatError if the shards disagree
    """
    first = parts[0]
    for part in parts:
        if (part.shape, part.dtype) != (first.shape, first.dtype):
            raise FormatError(
                f"{part.origin}: {part.dtype.name} {list(part.shape)}, but the first shard has "
                f"{first.dtype.name} {list(first.shape)}; are they shards of one model?"
            )
    if len(first.shape) == 1 or len(parts) == 1:
        return first
    if len(first.shape) != 2:
        raise FormatError(f"{first.origin}: shape {list(first.shape)} is no matrix")
    if name.endswith(_SHARED_HEADS):
        parts = _without_repeats(parts, kv_dim)
    axis = 1 if name.endswith(_COLUMNS) or (name == "embed" and first.shape[1] != dim) else 0
    return JoinedView(tuple(parts), axis) if len(parts) > 1 else parts[0]


def _without_repeats(parts: list[TensorView], kv_dim: int) -> list[TensorView]:
    """Every head once, where several shards next to each other have the same.

    Raises:  FormatError if neighbours differ in their first row, and so are no repeats
    """
    n_rows = parts[0].shape[0]
    repeats = n_rows * len(parts) // kv_dim if kv_dim else 1
    if repeats < 2 or n_rows * len(parts) != repeats * kv_dim or len(parts) % repeats:
        return parts
    for at, part in enumerate(parts):
        kept = parts[at - at % repeats]
        if bytes(part.rows(0, 1).data) != bytes(kept.rows(0, 1).data):
            raise FormatError(
                f"{part.origin}: is to repeat the heads of {kept.origin}, but differs from it"
            )
    return parts[::repeats]
