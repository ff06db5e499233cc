"""A Llama in float64 numpy: slow, obvious, the judge of every other forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rllama.config import ModelConfig

F64 = NDArray[np.float64]


def forward(cfg: ModelConfig, weights: Mapping[str, F64], token_ids: Sequence[int]) -> F64:
    """Logits of every position of one sequence.

    Shapes:  weights as Checkpoint.tensors names them, result [T, V] f64
    """
    n_tokens = len(token_ids)
    x = weights["embed"][np.asarray(token_ids)]  # [T, D]
    for i in range(cfg.n_layers):
        prefix = f"layers.{i}."
        w = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        h = rms_norm(x, w["attn_norm"], cfg.norm_eps)
        q = (h @ w["wq"].T).reshape(n_tokens, cfg.n_heads, cfg.head_dim)
        k = (h @ w["wk"].T).reshape(n_tokens, cfg.n_kv_heads, cfg.head_dim)
        v = (h @ w["wv"].T).reshape(n_tokens, cfg.n_kv_heads, cfg.head_dim)
        q, k = rope(q, cfg), rope(k, cfg)
        a = attention(q, k, v, cfg, cfg.windows[i] if cfg.windows else 0, w.get("sinks"))
        x = x + a.reshape(n_tokens, -1) @ w["wo"].T
        h = rms_norm(x, w["ffn_norm"], cfg.norm_eps)
        x = x + (silu(h @ w["w_gate"].T) * (h @ w["w_up"].T)) @ w["w_down"].T
    head = weights.get("lm_head", weights["embed"])
    return rms_norm(x, weights["final_norm"], cfg.norm_eps) @ head.T


def rms_norm(x: F64, weight: F64, eps: float) -> F64:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def silu(x: F64) -> F64:
    return x / (1.0 + np.exp(-x))


def rope(x: F64, cfg: ModelConfig) -> F64:
    """Rotate [T, heads, d] by positions 0..T-1."""
    half = cfg.head_dim // 2
    angle = np.arange(len(x))[:, None] * cfg.rope_theta ** (-np.arange(half) / half)  # [T, d/2]
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    out = np.empty_like(x)
    if cfg.rope_style == "interleaved":
        a, b = slice(0, None, 2), slice(1, None, 2)
    else:
        a, b = slice(0, half), slice(half, None)
    out[..., a] = x[..., a] * cos - x[..., b] * sin
    out[..., b] = x[..., a] * sin + x[..., b] * cos
    return out


def attention(
    q: F64, k: F64, v: F64, cfg: ModelConfig, window: int = 0, sinks: F64 | None = None
) -> F64:
    """Causal, grouped: query head h reads key/value head h // (H / G).

    Shapes:  q [T, H, d], k and v [T, G, d], sinks [H], result [T, H, d]
    """
    n_tokens, n_heads, head_dim = q.shape
    group = n_heads // k.shape[1]
    out = np.empty_like(q)
    seen = np.tril(np.ones((n_tokens, n_tokens), dtype=bool))
    if window:
        seen &= ~np.tril(seen, -window)
    for h in range(n_heads):
        scores = q[:, h] @ k[:, h // group].T * (cfg.attn_scale or head_dim**-0.5)
        if cfg.attn_softcap:
            scores = cfg.attn_softcap * np.tanh(scores / cfg.attn_softcap)
        scores = np.where(seen, scores, -np.inf)
        weight = np.exp(scores - scores.max(axis=-1, keepdims=True))
        total = weight.sum(axis=-1, keepdims=True)
        if sinks is not None:
            total += np.exp(sinks[h] - scores.max(axis=-1, keepdims=True))
        out[:, h] = weight / total @ v[:, h // group]
    return out
