"""Llama and its kin in float64 numpy: slow, obvious, the judge of every other forward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rllama.config import ModelConfig

F64 = NDArray[np.float64]


def forward(
    cfg: ModelConfig, weights: Mapping[str, F64], token_ids: Sequence[int], max_seq_len: int = 0
) -> F64:
    """Logits of every position of one sequence.

    Shapes:  weights as Checkpoint.tensors names them, result [T, V] f64
    Notes:   max_seq_len is the context that the engine is opened with, 0: that of the config
    """
    x = weights["embed"][np.asarray(token_ids)] * cfg.embed_scale  # [T, D]
    for i in range(cfg.n_layers):
        prefix = f"layers.{i}."
        w = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        x = x + cfg.residual_scale * attention_branch(cfg, w, x, i, max_seq_len)
        x = x + cfg.residual_scale * ffn_branch(cfg, w, x)
    head = weights.get("lm_head", weights["embed"])
    logits = normed(cfg, weights, "final_norm", x) @ head.T * cfg.logit_scale
    return softcapped(logits, cfg.logit_softcap)


def attention_branch(
    cfg: ModelConfig, w: Mapping[str, F64], x: F64, i: int, max_seq_len: int
) -> F64:
    h = normed(cfg, w, "attn_norm", x)
    if "wqkv" in w:
        ends = cfg.n_heads * cfg.head_dim, (cfg.n_heads + cfg.n_kv_heads) * cfg.head_dim
        wq, wk, wv = np.split(w["wqkv"], ends)
    else:
        wq, wk, wv = w["wq"], w["wk"], w["wv"]
    q = heads(cfg, w, "q_norm", linear(h, wq, w.get("bq")), cfg.n_heads)
    k = heads(cfg, w, "k_norm", linear(h, wk, w.get("bk")), cfg.n_kv_heads)
    v = linear(h, wv, w.get("bv")).reshape(len(x), cfg.n_kv_heads, cfg.head_dim)
    if i not in cfg.unrotated_layers:
        q, k = rope(q, cfg, i, max_seq_len), rope(k, cfg, i, max_seq_len)
    if cfg.rope_scaling is not None:
        times = np.arange(len(x)) // max(cfg.rope_scaling.original_max_seq_len, 1)
        q = q * (1 + cfg.rope_scaling.query_growth * np.log(1 + times))[:, None, None]
    a = attention(cfg, q, k, v, cfg.windows[i] if cfg.windows else 0, w.get("sinks"))
    return normed(cfg, w, "post_attn_norm", linear(a.reshape(len(x), -1), w["wo"], w.get("bo")))


def ffn_branch(cfg: ModelConfig, w: Mapping[str, F64], x: F64) -> F64:
    h = normed(cfg, w, "ffn_norm", x)
    if cfg.n_experts:
        return experts(cfg, w, h)
    gate, up = np.split(w["w_gate_up"], 2) if "w_gate_up" in w else (w["w_gate"], w["w_up"])
    gate, up = linear(h, gate, w.get("b_gate")), linear(h, up, w.get("b_up"))
    out = linear(ACTIVATIONS[cfg.activation](gate) * up, w["w_down"], w.get("b_down"))
    return normed(cfg, w, "post_ffn_norm", out)


def experts(cfg: ModelConfig, w: Mapping[str, F64], x: F64) -> F64:
    """Each token through the experts with the largest logits, weighted by their softmax."""
    logits = linear(x, w["router"], w.get("b_router"))
    out = np.zeros_like(x)
    for t, row in enumerate(logits):
        chosen = np.argsort(-row, kind="stable")[: cfg.n_experts_used]
        share = np.exp(row - row.max())
        share /= share[chosen].sum() if cfg.normalise_experts else share.sum()
        for e in chosen:
            gate, up = (
                linear(x[t], w[f"experts.{e}.w_{part}"], w.get(f"experts.{e}.b_{part}"))
                for part in ("gate", "up")
            )
            if cfg.activation == "swiglu_clamped":
                gate, up = np.minimum(gate, 7.0), np.clip(up, -7.0, 7.0) + 1.0
            unit = ACTIVATIONS[cfg.activation](gate) * up
            down, bias = w[f"experts.{e}.w_down"], w.get(f"experts.{e}.b_down")
            out[t] += share[e] * linear(unit, down, bias)
    return out


def linear(x: F64, weight: F64, bias: F64 | None) -> F64:
    return x @ weight.T + (0.0 if bias is None else bias)


def normed(cfg: ModelConfig, w: Mapping[str, F64], name: str, x: F64) -> F64:
    """Normed by a weight of this name; as it is where there is none."""
    return rms_norm(x, w[name] + cfg.norm_offset, cfg.norm_eps) if name in w else x


def heads(cfg: ModelConfig, w: Mapping[str, F64], norm: str, x: F64, n: int) -> F64:
    """[T, n*d] as [T, n, d], normed per head or over all heads, as wide as the weight is."""
    shape = len(x), n, cfg.head_dim
    if norm in w and w[norm].shape == (cfg.head_dim,):
        return normed(cfg, w, norm, x.reshape(shape))
    return normed(cfg, w, norm, x).reshape(shape)


def rms_norm(x: F64, weight: F64, eps: float) -> F64:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def silu(x: F64) -> F64:
    return x / (1.0 + np.exp(-x))


def gelu(x: F64) -> F64:
    return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / np.sqrt(2.0)))


def gelu_tanh(x: F64) -> F64:
    return x * 0.5 * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def swish(x: F64) -> F64:
    return x / (1.0 + np.exp(-1.702 * x))


ACTIVATIONS = {"silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh, "swiglu_clamped": swish}


def softcapped(x: F64, cap: float) -> F64:
    return cap * np.tanh(x / cap) if cap else x


def rope(x: F64, cfg: ModelConfig, i: int, max_seq_len: int) -> F64:
    """Rotate the beginning of [T, heads, d] by positions 0..T-1."""
    n = cfg.n_rotated or cfg.head_dim
    is_local = cfg.local_rope_theta is not None and bool(cfg.windows) and cfg.windows[i] > 0
    theta = cfg.local_rope_theta if is_local else cfg.rope_theta
    freqs = [theta ** (-2 * j / n) for j in range(n // 2)]
    factor = 1.0
    if cfg.rope_scaling is not None and not is_local:
        freqs, factor = scaled(cfg, freqs, max_seq_len or cfg.max_seq_len)
    angle = np.arange(len(x))[:, None] * np.array(freqs)  # [T, n/2]
    cos, sin = factor * np.cos(angle)[:, None, :], factor * np.sin(angle)[:, None, :]
    out = x.copy()
    if cfg.rope_style == "interleaved":
        a, b = slice(0, n, 2), slice(1, n, 2)
    else:
        a, b = slice(0, n // 2), slice(n // 2, n)
    out[..., a] = x[..., a] * cos - x[..., b] * sin
    out[..., b] = x[..., a] * sin + x[..., b] * cos
    return out


def scaled(cfg: ModelConfig, freqs: list[float], context: int) -> tuple[list[float], float]:
    """Frequencies pair by pair as the papers have them, and the factor of cosines and sines."""
    s = cfg.rope_scaling
    assert s is not None
    n, original = 2 * len(freqs), s.original_max_seq_len
    if s.kind == "linear":
        return [f / s.factor for f in freqs], 1.0
    if s.kind == "dynamic":
        grown = s.factor * max(context, original) / original - (s.factor - 1)
        theta = cfg.rope_theta * grown ** (n / (n - 2))
        return [theta ** (-2 * j / n) for j in range(n // 2)], 1.0
    if s.kind == "longrope":
        factors = s.long_factors if context > original else s.short_factors
        own = 1.0 if s.factor <= 1 else math.sqrt(1 + math.log(s.factor) / math.log(original))
        attn = own if s.attn_factor is None else s.attn_factor
        return [f / c for f, c in zip(freqs, factors, strict=True)], attn
    if s.kind == "llama3":
        return [llama3(f, s.factor, original, s.low_freq_factor, s.high_freq_factor)
                for f in freqs], 1.0  # fmt: skip
    low, high = (
        n * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(cfg.rope_theta))
        for turns in (s.beta_fast, s.beta_slow)
    )
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, n - 1)
    mixed = [min(max((j - low) / (high - low), 0), 1) for j in range(n // 2)]
    return [f * (1 - m) + f / s.factor * m for f, m in zip(freqs, mixed, strict=True)], yarn_attn(
        s.factor, s.attn_factor, s.mscale, s.mscale_all_dim
    )


def yarn_attn(factor: float, attn: float | None, mscale: float, all_dim: float) -> float:
    if attn is not None:
        return attn
    if mscale and all_dim:
        return (0.1 * mscale * math.log(factor) + 1) / (0.1 * all_dim * math.log(factor) + 1)
    return 0.1 * math.log(factor) + 1


def llama3(f: float, factor: float, original: int, low: float, high: float) -> float:
    wavelength = 2 * math.pi / f
    if wavelength < original / high:
        return f
    if wavelength > original / low:
        return f / factor
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * f / factor + smooth * f


def attention(
    cfg: ModelConfig, q: F64, k: F64, v: F64, window: int, sinks: F64 | None = None
) -> F64:
    """Causal, grouped: query head h reads key/value head h // (H / G).

    Shapes:  q [T, H, d], k and v [T, G, d], result [T, H, d]
    """
    n_tokens, n_heads, head_dim = q.shape
    group = n_heads // k.shape[1]
    out = np.empty_like(q)
    seen = np.tril(np.ones((n_tokens, n_tokens), dtype=bool))
    if window:
        seen &= ~np.tril(np.ones((n_tokens, n_tokens), dtype=bool), -window)
    scale = 1 / np.sqrt(head_dim) if cfg.attn_scale is None else cfg.attn_scale
    for h in range(n_heads):
        scores = softcapped(q[:, h] @ k[:, h // group].T * scale, cfg.attn_softcap)
        scores = np.where(seen, scores, -np.inf)
        most = scores.max(axis=-1, keepdims=True)
        weight = np.exp(scores - most)
        total = weight.sum(axis=-1, keepdims=True)
        if sinks is not None:
            total = total + np.exp(sinks[h] - most)
        out[:, h] = weight / total @ v[:, h // group]
    return out
