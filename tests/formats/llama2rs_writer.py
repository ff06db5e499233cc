"""Writer of llama2.rs files of both ages, from the description of their layout."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
from formats.packers import pack_bits, quantised
from formats.writers import random_model
from numpy.typing import NDArray

from rllama.config import ModelConfig

Weights = dict[str, NDArray[np.float64]]
MATRICES = ("wq", "wk", "wv", "wo")


def llama2rs_bytes(
    cfg: ModelConfig, *, group_size: int = 32, is_new: bool = True, scale_type: str = "<f2"
) -> tuple[bytes, Weights]:
    """A file and what it stands for; group_size 0: f32 matrices."""
    model = random_model(cfg, seed=21)
    weights: Weights = {}

    def floats(name: str) -> bytes:
        weights[name] = model[name].astype(np.float64)
        return model[name].astype("<f4").tobytes()

    def matrix(name: str) -> bytes:
        if group_size == 0:
            return floats(name)
        seed = 5 if name.endswith(("wq", "wk", "wv")) else 6
        q = quantised(model[name], 4, group_size, seed=seed, act_order=is_new,
                      scale_type=scale_type)  # fmt: skip
        weights[name] = q.values
        order = np.argsort(q.g_idx, kind="stable")
        parts = [
            np.ascontiguousarray(pack_bits(q.q[order], 4).T),
            pack_bits((q.zeros.T - 1) % 16, 4),
            np.ascontiguousarray(q.scales.T.astype("<f4")),
        ]
        return b"".join(p.tobytes() for p in [*parts, *([order.astype("<i4")] * is_new)])

    def stack(kind: str, write: Callable[[str], bytes]) -> bytes:
        return b"".join(write(f"layers.{i}.{kind}") for i in range(cfg.n_layers))

    half = cfg.head_dim // 2
    angles = np.arange(cfg.max_seq_len)[:, None] * cfg.rope_theta ** (-np.arange(half) / half)
    out = struct.pack("<7i", cfg.dim, cfg.ffn_dim, cfg.n_layers, cfg.n_heads, cfg.n_heads,
                      -cfg.vocab_size, cfg.max_seq_len)  # fmt: skip
    out += struct.pack("<f", cfg.norm_eps) if is_new else b""
    out += floats("embed") + stack("attn_norm", floats)
    out += b"".join(stack(kind, matrix) for kind in MATRICES) + stack("ffn_norm", floats)
    out += b"".join(stack(kind, matrix) for kind in ("w_gate", "w_down", "w_up"))
    out += floats("final_norm")
    out += np.cos(angles).astype("<f4").tobytes() + np.sin(angles).astype("<f4").tobytes()
    return out + floats("lm_head"), weights
