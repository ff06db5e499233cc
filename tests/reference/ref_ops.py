"""Every kernel op in float64 numpy: slow, obvious, the judge of the compiled ones.

Ops that sum return `(want, norm)`: the exact value and the sum of the absolute values of what was
added, so that a test can bound the error of any order of adding by c * U * norm.
"""

from __future__ import annotations

import math
import struct

import numpy as np
from numpy.typing import NDArray

from rllama.dtypes import dtype_by_name
from rllama.quant import dequantize

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
Bytes = NDArray[np.uint8]

U = 2.0**-24  # half the distance from 1.0 to the next f32: the error of one rounding
BLOCK = 32
BLOCK_BYTES = {"Q8_0": 34, "Q4_0": 18, "Q8_F32": 36}
VALUE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def row_bytes(fmt: str, n_cols: int) -> int:
    if fmt in VALUE_BYTES:
        return n_cols * VALUE_BYTES[fmt]
    assert n_cols % BLOCK == 0
    return n_cols // BLOCK * BLOCK_BYTES[fmt]


def decode_floats(fmt: str, raw: Bytes, n_rows: int, n_cols: int) -> F64:
    """Values of an F32, F16 or BF16 weight [N, K]."""
    if fmt == "F32":
        values = raw.view("<f4").astype(np.float64)
    elif fmt == "F16":
        values = raw.view("<f2").astype(np.float64)
    else:
        values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return values.reshape(n_rows, n_cols)


def decode_blocks(fmt: str, raw: Bytes, n_rows: int, n_cols: int) -> tuple[F64, NDArray[np.int64]]:
    """A block weight [N, K] as scales [N, K/32] and whole numbers [N, K/32, 32]."""
    n_blocks = n_cols // BLOCK
    scales = np.empty((n_rows, n_blocks))
    whole = np.empty((n_rows, n_blocks, BLOCK), dtype=np.int64)
    size = BLOCK_BYTES[fmt]
    packed = raw.tobytes()
    for n in range(n_rows):
        for b in range(n_blocks):
            block = packed[(n * n_blocks + b) * size :][:size]
            if fmt == "Q8_F32":
                scales[n, b], *whole[n, b] = struct.unpack("<f32b", block)
            elif fmt == "Q8_0":
                scales[n, b], *whole[n, b] = struct.unpack("<e32b", block)
            else:
                scales[n, b], *nibbles = struct.unpack("<e16B", block)
                whole[n, b] = [(q & 15) - 8 for q in nibbles] + [(q >> 4) - 8 for q in nibbles]
    return scales, whole


def decode(fmt: str, raw: Bytes, n_rows: int, n_cols: int) -> F64:
    """Values of any weight [N, K]."""
    if fmt in VALUE_BYTES:
        return decode_floats(fmt, raw, n_rows, n_cols)
    if fmt not in BLOCK_BYTES:  # tests/quant compares this codec with ggml's to the bit
        return dequantize(fmt, raw, (n_rows, n_cols)).astype(np.float64)
    scales, whole = decode_blocks(fmt, raw, n_rows, n_cols)
    return (scales[:, :, None] * whole).reshape(n_rows, n_cols)


# Formats with a min: the byte in its block where it begins.
MINS_AT = {"Q4_1": 2, "Q5_1": 2, "Q4_K": 2, "Q5_K": 2, "Q2_K": 82, "Q4_G": 2, "Q8_G": 2}


def sizes(fmt: str, raw: Bytes, n_rows: int, n_cols: int) -> F64:
    """|scale * q| + |min| of a block weight [N, K]: with one sign of the min or with the other."""
    values = np.abs(decode(fmt, raw, n_rows, n_cols))
    if fmt not in MINS_AT:
        return values
    flipped = raw.copy().reshape(-1, dtype_by_name(fmt).block_bytes)
    flipped[:, MINS_AT[fmt] + 1] ^= 0x80
    return np.maximum(values, np.abs(decode(fmt, flipped.reshape(-1), n_rows, n_cols)))


def quantize_activations(x: F32) -> tuple[F64, NDArray[np.int64]]:
    """The 8-bit activations of the integer kernels: scales [T, K/32], values [T, K/32, 32].

    Every operation is one f32 operation, in the kernels' order, so the result is exact.
    """
    blocks = x.reshape(len(x), -1, BLOCK)
    most = np.abs(blocks).max(axis=2)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(most > 0, np.float32(127) / most, np.float32(0))
    vanishing = inverse > np.float32(3e38)  # no inverse within f32: the block counts as zero
    inverse = np.where(vanishing, np.float32(0), inverse)
    most = np.where(vanishing, np.float32(0), most)
    whole = np.rint(blocks * inverse[:, :, None]).astype(np.int64)
    return (most / np.float32(127)).astype(np.float64), whole


def rounded_activations(x: F32) -> F64:
    """The values that x has in 8 bits."""
    scales, whole = quantize_activations(x)
    return (scales[:, :, None] * whole).reshape(x.shape)


def round_bf16(x: F32) -> F32:
    """f32 to the nearest BF16, ties to even, as f32 again. Finite values."""
    bits = x.view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def matmul(x: F32 | F64, w: F64) -> tuple[F64, F64]:
    """x[T, K] @ w[N, K].T and the norms, [T, N]."""
    wide = x.astype(np.float64)
    return wide @ w.T, np.abs(wide) @ np.abs(w).T


def matmul_blocks(x: F32, scales: F64, whole: NDArray[np.int64]) -> tuple[F64, F64]:
    """The same with x in 8 bits: whole-number sums of 32 are exact, and so are their products with
    both scales; the norm adds what the kernels add, one term per block."""
    x_scales, x_whole = quantize_activations(x)
    dots = np.einsum("tbk,nbk->tnb", x_whole.astype(np.float64), whole.astype(np.float64))
    terms = dots * scales[None, :, :] * x_scales[:, None, :]
    return terms.sum(axis=2), np.abs(terms).sum(axis=2)


def quantisation_error(x: F32, w: F64) -> F64:
    """How far 8-bit activations may move x @ w.T: half a step of every value, [T, N]."""
    blocks = np.abs(x.astype(np.float64)).reshape(len(x), -1, BLOCK)
    half_step = blocks.max(axis=2) / 254.0
    weights = np.abs(w).reshape(len(w), -1, BLOCK).sum(axis=2)
    return half_step @ weights.T


def rms_norm(x: F32, weight: F32, eps: float) -> F64:
    wide = x.astype(np.float64)
    mean = np.mean(wide * wide, axis=1, keepdims=True)
    return wide / np.sqrt(mean + np.float64(np.float32(eps))) * weight.astype(np.float64)


def rope(x: F32, positions: I32, inv_freq: F64, style: str) -> tuple[F64, F64]:
    """Rotated heads and the norms |a| + |b| of each pair.

    Shapes: x [T, heads, d], inv_freq [d/2]
    """
    wide = x.astype(np.float64)
    half = len(inv_freq)
    angle = (positions.astype(np.float64)[:, None] * inv_freq)[:, None, :]
    if style == "interleaved":
        first, second = slice(0, None, 2), slice(1, None, 2)
    else:
        first, second = slice(0, half), slice(half, None)
    a, b = wide[..., first], wide[..., second]
    out, norm = np.empty_like(wide), np.empty_like(wide)
    out[..., first] = a * np.cos(angle) - b * np.sin(angle)
    out[..., second] = a * np.sin(angle) + b * np.cos(angle)
    norm[..., first] = norm[..., second] = np.abs(a) + np.abs(b)
    return out, norm


def glu(gate: F32 | F64, up: F32 | F64, activation: str = "silu") -> F64:
    """activation(gate) * up"""
    wide, other = gate.astype(np.float64), up.astype(np.float64)
    with np.errstate(over="ignore"):
        if activation == "silu":
            return wide / (1.0 + np.exp(-wide)) * other
        if activation == "gelu":
            below = [0.5 * math.erfc(-x / math.sqrt(2.0)) for x in wide.reshape(-1)]
            return wide * np.reshape(below, wide.shape) * other
        if activation == "gelu_tanh":
            twice = 2.0 * np.sqrt(2.0 / np.pi) * (wide + 0.044715 * wide**3)
            return wide / (1.0 + np.exp(-twice)) * other
        assert activation == "swiglu_clamped"
        wide, other = np.minimum(wide, 7.0), np.clip(other, -7.0, 7.0)
        return wide / (1.0 + np.exp(-1.702 * wide)) * (other + 1.0)


def store(values: F32, kv_dtype: str) -> F64:
    """What a cache of this type gives back of heads [..., d]."""
    with np.errstate(over="ignore"):
        if kv_dtype == "q8_0":
            d = values.shape[-1]
            rows = np.pad(values.reshape(-1, d), ((0, 0), (0, -d % BLOCK)))
            scales, whole = quantize_activations(rows)
            kept = scales.astype(np.float16).astype(np.float64)[:, :, None] * whole
            return kept.reshape(rows.shape)[:, :d].reshape(values.shape)
        return values.astype(np.float16 if kv_dtype == "f16" else np.float32).astype(np.float64)


def attention(
    q: F32,
    k: F64,
    v: F64,
    positions: list[int],
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: F32 | None = None,
) -> tuple[F64, F64, F64]:
    """Causal attention of some tokens of one sequence over its plain cache.

    Shapes:  q [T, H, d] at the positions, k and v [P, G, d], sinks [H]
    Notes:   query head h reads key/value head h // (H / G); besides the result: the sums of
             weight * |v| [T, H, d], and per row the largest sum scale * |q||k|, [T, H, 1]
    """
    n_heads = q.shape[1]
    wide = q.astype(np.float64)
    group = n_heads // k.shape[1]
    out, norm = np.zeros_like(wide), np.zeros_like(wide)
    largest = np.zeros((len(q), n_heads, 1))
    for t, position in enumerate(positions):
        seen = slice(max(0, position - window + 1) if window else 0, position + 1)
        for h in range(n_heads):
            keys, values = k[seen, h // group], v[seen, h // group]
            scores = keys @ wide[t, h] * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            logits = scores if sinks is None else np.append(scores, np.float64(sinks[h]))
            weights = np.exp(scores - logits.max()) / np.exp(logits - logits.max()).sum()
            out[t, h] = weights @ values
            norm[t, h] = weights @ np.abs(values)
            largest[t, h] = (np.abs(keys) @ np.abs(wide[t, h])).max() * abs(scale)
    return out, norm, largest
