"""GGUF rows of the corpus of bad files: tensors of every weight type that do not fit."""

from __future__ import annotations

from collections.abc import Iterator

from hostile_case import Case, blob
from hostile_gguf import VOCAB
from writers import GGUF_TYPE_IDS, RawGguf, random_model, raw_gguf, tiny_config

from rllama.dtypes import dtype_by_name
from rllama.errors import FormatError

# One row of the head is a block of every type.
CFG = tiny_config(dim=256, ffn_dim=256, head_dim=64, n_layers=1, vocab_size=262, tied_head=True)
MODEL = random_model(CFG, 12)
BLOCK_TYPES = [name for name in GGUF_TYPE_IDS if not dtype_by_name(name).is_float]


def base(kind: str) -> RawGguf:
    """A correct file whose matrices are of this type."""
    return raw_gguf(CFG, MODEL, kind, VOCAB)


def cases() -> Iterator[Case]:
    """All cases of weight types."""
    for kind in BLOCK_TYPES:
        yield from _of(kind)


def _of(kind: str) -> Iterator[Case]:
    dtype = dtype_by_name(kind)

    def good() -> bytes:
        return base(kind).to_bytes()

    def half_a_block() -> bytes:
        raw = base(kind)
        n_values = CFG.dim - dtype.block_len // 2
        raw.tensors[0].dims = (n_values, CFG.vocab_size)
        return raw.to_bytes()

    def one_row_more() -> bytes:
        raw = base(kind)
        raw.tensors[0].dims = (CFG.dim, CFG.vocab_size + 1)
        raw.tensors = [*raw.tensors[1:], raw.tensors[0]]
        return raw.to_bytes()

    def overlap() -> bytes:
        raw = base(kind)
        raw.tensors[1].offset = (len(raw.tensors[0].data) - 1) // 32 * 32
        return raw.to_bytes()

    def any_bytes() -> bytes:
        """Scales that are not finite, and whatever else 0xff is."""
        raw = base(kind)
        for tensor in raw.tensors:
            if len(tensor.dims) == 2:
                tensor.data = b"\xff" * len(tensor.data)
        return raw.to_bytes()

    yield blob("G61", f"{kind}_good", good, None, "")
    yield blob("G61", f"{kind}_cut", lambda: good()[:-1], FormatError, "beyond")
    yield blob(
        "G61", f"{kind}_half_a_block", half_a_block, FormatError, f"{dtype.block_len}-value blocks"
    )
    yield blob("G61", f"{kind}_one_row_more", one_row_more, FormatError, "beyond")
    yield blob("G61", f"{kind}_overlap", overlap, FormatError, "before the end")
    yield blob("G61", f"{kind}_all_ones", any_bytes, None, "")
