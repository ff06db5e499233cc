"""GPTQ: matrices of 2, 3, 4 or 8 bits, packed along the inputs of each output.

    qweight  I32 [K*bits/32, N]       a run of bits: input k begins at bit k*bits of its column
    qzeros   I32 [groups, N*bits/32]  the same along the outputs; one less than the zero ("gptq")
                                      or the zero itself ("gptq_v2")
    scales   F16 [groups, N]
    g_idx    I32 [K]                  the group of each input; missing: k / group size

value[n, k] = scales[g, n] * (q[k, n] - zero[g, n]). Zeros are cut to their bits after the one is
added: quantisers give zeros from 0 to 2^bits - 1, so a stored 15 (of 4 bits) means 0, never 16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rllama.errors import FormatError
from rllama.formats.quant_config import QuantScheme
from rllama.packed import PackedView, packed_dtype

if TYPE_CHECKING:
    from rllama.formats.packed_linears import PackedLinear


def view(linear: PackedLinear, scheme: QuantScheme) -> PackedView:
    """One matrix. Raises FormatError where types, shapes or groups do not fit."""
    bits = scheme.bits
    words_shape = linear.shape("qweight")
    if len(words_shape) != 2 or 0 in words_shape or words_shape[0] * 32 % bits:
        raise FormatError(
            f"{linear.where}.qweight: {list(words_shape)} is no matrix of {bits} bits"
        )
    n_in, n_out = words_shape[0] * 32 // bits, words_shape[1]
    if n_out * bits % 32:
        raise FormatError(f"{linear.where}: zeros of {n_out} outputs do not fill words")
    n_groups = 1 if scheme.group_size == -1 else -(-n_in // scheme.group_size)
    scales = linear.floats("scales", (n_groups, n_out))
    group_of = _group_of(linear, n_in, n_groups, scheme)
    return PackedView(
        words=linear.words("qweight", words_shape),
        zeros=linear.words("qzeros", (n_groups, n_out * bits // 32)),
        scales=scales, group_of=group_of, bits=bits, layout="inputs",
        zero_offset=scheme.zero_offset, dtype=packed_dtype(bits, group_of, scales),
        shape=(n_out, n_in), origin=linear.origin,
    )  # fmt: skip


def _group_of(
    linear: PackedLinear, n_in: int, n_groups: int, scheme: QuantScheme
) -> NDArray[np.int32]:
    if "g_idx" not in linear.pieces:
        return (np.arange(n_in) // (n_in if n_groups == 1 else scheme.group_size)).astype(np.int32)
    groups = linear.words("g_idx", (n_in,)).view(np.int32)
    if groups.min() < 0 or groups.max() >= n_groups:
        wrong = int(np.flatnonzero((groups < 0) | (groups >= n_groups))[0])
        raise FormatError(
            f"{linear.where}.g_idx: input {wrong} is of group {groups[wrong]}, of {n_groups} groups"
        )
    return groups
