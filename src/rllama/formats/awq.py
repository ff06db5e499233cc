"""AWQ (AutoAWQ's GEMM layout): matrices of 4 bits, packed along the outputs of each input.

    qweight  I32 [K, N/8]       eight outputs in a word, whose nibbles lie 0 2 4 6 1 3 5 7
    qzeros   I32 [groups, N/8]  the same; the zero itself
    scales   F16 [groups, N]

value[n, k] = scales[g, n] * (q[k, n] - zero[g, n]), where g = k / group size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rllama.errors import FormatError
from rllama.formats.quant_config import QuantScheme
from rllama.packed import PackedView, packed_dtype

if TYPE_CHECKING:
    from rllama.formats.packed_linears import PackedLinear


def view(linear: PackedLinear, scheme: QuantScheme) -> PackedView:
    """One matrix. Raises FormatError where types or shapes do not fit."""
    shape = linear.shape("qweight")
    if len(shape) != 2 or 0 in shape:
        raise FormatError(f"{linear.where}.qweight: {list(shape)} is no matrix")
    if "g_idx" in linear.pieces:
        raise FormatError(f"{linear.where}.g_idx has no place beside AWQ's matrices")
    n_in, n_out = shape[0], shape[1] * 8
    group_size = n_in if scheme.group_size == -1 else scheme.group_size
    n_groups = -(-n_in // group_size)
    group_of = (np.arange(n_in) // group_size).astype(np.int32)
    scales = linear.floats("scales", (n_groups, n_out))
    return PackedView(
        words=linear.words("qweight", shape),
        zeros=linear.words("qzeros", (n_groups, shape[1])),
        scales=scales, group_of=group_of, bits=4, layout="across",
        zero_offset=scheme.zero_offset, dtype=packed_dtype(4, group_of, scales),
        shape=(n_out, n_in), origin=linear.origin,
    )  # fmt: skip
