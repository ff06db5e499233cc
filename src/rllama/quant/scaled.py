"""torchchat's rules: groups of a row under one scale, symmetric or between smallest and largest.

    symmetric    scale = max|x| / 127.5 (8 bits) or / 7.5 (4 bits), at least f32's epsilon
    asymmetric   scale = max(largest - smallest, 1e-6) / 15, the smallest is the min

Quotients take the f32 scale and are rounded to even; what is stored is rounded afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rllama.quant import bf16, blocks

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def symmetric(x: Floats, n_bits: int, group: int, scale_type: str = "F32") -> Bytes:
    """Rows as Q8_F32 (8 bits) or Q4_0 (4 bits).

    Shapes: x [N, K] -> [N, row_bytes]
    Units:  group columns, a multiple of 32
    """
    half_range, low, high = (127.5, -128, 127) if n_bits == 8 else (7.5, -8, 7)
    packed = []
    for part in _groups(x, group):
        scale = np.abs(part).max(axis=1, keepdims=True) / np.float32(half_range)
        scale = np.maximum(scale, np.finfo(np.float32).eps)
        q = np.clip(np.rint(part / scale), low, high).astype(np.int8)
        stored = np.repeat(_narrowed(scale, scale_type), part.shape[1] // 32, axis=0)
        split = q.reshape(-1, 32)
        if n_bits == 8:
            head, body = stored.astype("<f4").view(np.uint8), split.view(np.uint8)
        else:
            head, body = blocks.f16_bytes(stored), blocks.pack_nibbles((split + 8).astype(np.uint8))
        packed.append(np.concatenate([head, body], axis=1).reshape(len(x), -1))
    return np.concatenate(packed, axis=1)


def asymmetric(x: Floats, group: int) -> Bytes:
    """Rows as Q4_1.

    Shapes: x [N, K] -> [N, K/32*20]
    Units:  group columns, a multiple of 32
    """
    packed = []
    for part in _groups(x, group):
        low = part.min(axis=1, keepdims=True)
        span = np.maximum(part.max(axis=1, keepdims=True) - low, np.float32(1e-6))
        scale = span / np.float32(15.0)
        q = np.clip(np.rint((part - low) / scale), 0, 15).astype(np.uint8).reshape(-1, 32)
        n = part.shape[1] // 32
        head = [blocks.f16_bytes(np.repeat(value, n, axis=0)) for value in (scale, low)]
        packed.append(np.concatenate([*head, blocks.pack_nibbles(q)], axis=1).reshape(len(x), -1))
    return np.concatenate(packed, axis=1)


def _groups(x: Floats, group: int) -> Iterator[Floats]:
    return (x[:, first : first + group] for first in range(0, x.shape[1], group))


def _narrowed(scale: Floats, scale_type: str) -> Floats:
    if scale_type == "F16":
        return scale.astype(np.float16).astype(np.float32)
    if scale_type == "BF16":
        return bf16.dequantize(bf16.quantize(scale).reshape(-1), scale.shape)
    return scale
