"""Packers of GPTQ and AWQ matrices, slow and plain, from the description of their layouts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Quantised:
    """A matrix in whole numbers: q [K, N], zeros and scales [groups, N], g_idx [K]."""

    bits: int
    q: Ints
    zeros: Ints
    scales: NDArray[np.floating]
    g_idx: Ints

    @property
    def values(self) -> NDArray[np.float64]:
        """What it stands for, [N, K]."""
        scales = self.scales.astype(np.float64)[self.g_idx]
        return (scales * (self.q - self.zeros[self.g_idx])).T


def quantised(
    weight: NDArray[np.floating],
    bits: int,
    group_size: int,
    *,
    seed: int = 0,
    act_order: bool = False,
    sym: bool = False,
    scale_type: str = "<f2",
) -> Quantised:
    """Quantise [N, K] by groups of inputs; act_order: of inputs drawn at random."""
    rows = weight.astype(np.float64).T  # [K, N]
    n_in = len(rows)
    size = n_in if group_size == -1 else group_size
    g_idx = np.arange(n_in) // size
    if act_order:
        g_idx = np.random.default_rng(seed).permutation(g_idx)
    most = 2**bits - 1
    q = np.empty(rows.shape, dtype=np.int64)
    n_groups = -(-n_in // size)
    zeros = np.empty((n_groups, rows.shape[1]), dtype=np.int64)
    scales = np.empty(zeros.shape, dtype=scale_type)
    for g in range(n_groups):
        part = rows[g_idx == g]
        low, high = np.minimum(part.min(axis=0), 0), np.maximum(part.max(axis=0), 0)
        if sym:
            high = np.maximum(-low, high)
            low = -high
        with np.errstate(divide="ignore", invalid="ignore"):
            scales[g] = (high - low) / most
            step = scales[g].astype(np.float64)
            zeros[g] = (most + 1) // 2 if sym else np.clip(np.rint(-low / step), 0, most)
        q[g_idx == g] = np.clip(np.rint(part / step) + zeros[g], 0, most)
    return Quantised(bits, q, zeros, scales, g_idx)


def pack_bits(values: Ints, bits: int) -> NDArray[np.int32]:
    """Along the first axis, [K, N] to i32 [K*bits/32, N].

    Three bits as AutoGPTQ writes them: ten values of a word, two bits of the eleventh; its last
    bit, ten values, one bit of the twenty-second; its last two bits, ten values.
    """
    n_values, n = values.shape
    words = np.zeros((n_values * bits // 32, n), dtype=np.uint64)
    wide = values.astype(np.uint64)
    if bits != 3:
        per_word = 32 // bits
        for k in range(n_values):
            words[k // per_word] |= wide[k] << np.uint64(bits * (k % per_word))
    else:
        for group in range(n_values // 32):
            v, w = wide[32 * group : 32 * group + 32], words[3 * group : 3 * group + 3]
            for j in range(10):
                w[0] |= v[j] << np.uint64(3 * j)
                w[1] |= v[11 + j] << np.uint64(3 * j + 1)
                w[2] |= v[22 + j] << np.uint64(3 * j + 2)
            w[0] |= (v[10] & np.uint64(3)) << np.uint64(30)
            w[1] |= v[10] >> np.uint64(2)
            w[1] |= (v[21] & np.uint64(1)) << np.uint64(31)
            w[2] |= v[21] >> np.uint64(1)
    return words.astype(np.uint32).view(np.int32)


def gptq_tensors(
    name: str, matrix: Quantised, *, v2: bool = False, with_g_idx: bool = True
) -> dict[str, NDArray[np.generic]]:
    """The tensors of one matrix; zeros less one, cut to their bits, unless v2."""
    stored = matrix.zeros if v2 else (matrix.zeros - 1) % 2**matrix.bits
    found: dict[str, NDArray[np.generic]] = {
        f"{name}.qweight": pack_bits(matrix.q, matrix.bits),
        f"{name}.qzeros": np.ascontiguousarray(pack_bits(stored.T, matrix.bits).T),
        f"{name}.scales": matrix.scales,
    }
    if with_g_idx:
        found[f"{name}.g_idx"] = matrix.g_idx.astype(np.int32)
    return found


def pack_awq(values: Ints) -> NDArray[np.int32]:
    """Along the second axis, [K, N] to i32 [K, N/8]: nibble i holds output (0 2 4 6 1 3 5 7)[i]."""
    words = np.zeros((len(values), values.shape[1] // 8), dtype=np.uint64)
    for i, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        words |= values[:, output::8].astype(np.uint64) << np.uint64(4 * i)
    return words.astype(np.uint32).view(np.int32)


def awq_tensors(name: str, matrix: Quantised) -> dict[str, NDArray[np.generic]]:
    """The tensors of one matrix."""
    return {
        f"{name}.qweight": pack_awq(matrix.q),
        f"{name}.qzeros": pack_awq(matrix.zeros),
        f"{name}.scales": matrix.scales,
    }
