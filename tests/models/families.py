"""The kin of Llama as tiny models: their numbers in our words, in config.json and in a GGUF."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from formats.writers import ARRAY, BOOL, F32, STRING, U32, Tensors, tiny_config

from rllama.config import ModelConfig, RopeScaling
from rllama.models import find
from rllama.models.table import expand, settled

BIASES = ("bq", "bk", "bv", "bo", "b_gate", "b_up", "b_down")
FUSED = ("wqkv", "w_gate_up")
SHORT, LONG = [1.0, 1.25, 1.5], [2.0, 3.0, 4.0]


@dataclass(frozen=True)
class Family:
    """One model.

    Notes:   numbers change the tiny config, as a config.json has them; gguf and vectors are keys
             and tensors of a GGUF; parts: tensors that the table leaves open; same: fields of the
             config that a GGUF has in another form
    """

    arch: str
    numbers: Mapping[str, object] = field(default_factory=dict)
    hf: Mapping[str, object] = field(default_factory=dict)
    gguf: Mapping[str, tuple[int, object]] = field(default_factory=dict)
    vectors: Mapping[str, list[float]] = field(default_factory=dict)
    gguf_arch: str = ""
    parts: tuple[str, ...] = ()
    interleaved: bool = False
    differs: tuple[str, ...] = ()

    @property
    def config(self) -> ModelConfig:
        sizes = {"arch": self.arch, "rope_style": "half", "n_layers": 4, "max_seq_len": 256}
        return tiny_config(**{**sizes, **self.numbers})


YARN = RopeScaling("yarn", 4.0, 64, beta_fast=8.0)
_YARN_HF = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
            "beta_fast": 8.0}  # fmt: skip
_YARN_GGUF = {
    "rope.scaling.type": (STRING, "yarn"), "rope.scaling.factor": (F32, 4.0),
    "rope.scaling.original_context_length": (U32, 64), "rope.scaling.yarn_beta_fast": (F32, 8.0),
}  # fmt: skip
LLAMA3 = RopeScaling("llama3", 8.0, 32, low_freq_factor=1.0, high_freq_factor=4.0)


def _llama3_factors(cfg: ModelConfig) -> list[float]:
    """What a converter writes into rope_freqs."""
    factors = []
    for j in range(cfg.head_dim // 2):
        turns = LLAMA3.original_max_seq_len * cfg.rope_theta ** (-2 * j / cfg.head_dim)
        fast = min(max((turns / (2 * math.pi) - 1) / 3, 0), 1)
        factors.append(1 / (fast + (1 - fast) / LLAMA3.factor))
    return factors


_WINDOW = (U32, 20)
_POST = {"norm_offset": 1.0, "activation": "gelu_tanh", "embed_scale": math.sqrt(32),
         "tied_head": True}  # fmt: skip
_NARROW = (20, 0, 20, 0)

FAMILIES: dict[str, Family] = {
    "llama_biases": Family("llama", hf={"attention_bias": True, "mlp_bias": True}, parts=BIASES,
                           interleaved=True),
    "llama_linear": Family(
        "llama", {"rope_scaling": RopeScaling("linear", 3.0)},
        hf={"rope_scaling": {"type": "linear", "factor": 3.0}},
        gguf={"rope.scaling.type": (STRING, "linear"), "rope.scaling.factor": (F32, 3.0)},
        interleaved=True,
    ),
    "llama_dynamic": Family(
        "llama", {"rope_scaling": RopeScaling("dynamic", 4.0, 64)},
        hf={"max_position_embeddings": 64, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
    ),
    "llama3": Family(
        "llama", {"rope_scaling": LLAMA3, "rope_theta": 1000.0},
        hf={"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
        vectors={"rope_freqs.weight": _llama3_factors(tiny_config(rope_theta=1000.0))},
        interleaved=True, differs=("rope_scaling",),
    ),
    "mistral": Family(
        "mistral", {"windows": (20,) * 4}, hf={"sliding_window": 20}, gguf_arch="llama",
        gguf={"attention.sliding_window": _WINDOW}, interleaved=True,
    ),
    "ministral": Family(
        "ministral", {"windows": _NARROW},
        hf={"sliding_window": 20,
            "layer_types": ["sliding_attention", "full_attention"] * 2},
        gguf={"attention.sliding_window": _WINDOW,
              "attention.sliding_window_pattern": (ARRAY, (BOOL, [True, False] * 2))},
        gguf_arch="llama", interleaved=True,
    ),
    "ministral3": Family(
        "ministral3",
        {"rope_scaling": replace(YARN, mscale=1.0, mscale_all_dim=1.0, query_growth=0.1)},
        hf={"rope_parameters": {
            **_YARN_HF, "rope_theta": 10000.0, "llama_4_scaling_beta": 0.1, "mscale": 1.0,
            "mscale_all_dim": 1.0}},
        gguf={**_YARN_GGUF, "rope.scaling.yarn_log_multiplier": (F32, 1.0),
              "attention.temperature_scale": (F32, 0.1)},
        gguf_arch="mistral3", interleaved=True, differs=("rope_scaling",),
    ),
    "granite": Family(
        "granite",
        {"embed_scale": 6.0, "residual_scale": 0.25, "logit_scale": 0.125, "attn_scale": 0.5,
         "tied_head": True},
        hf={"embedding_multiplier": 6.0, "residual_multiplier": 0.25, "logits_scaling": 8.0,
            "attention_multiplier": 0.5},
        gguf={"embedding_scale": (F32, 6.0), "residual_scale": (F32, 0.25),
              "logit_scale": (F32, 8.0), "attention.scale": (F32, 0.5)},
        interleaved=True,
    ),
    "smollm3": Family(
        "smollm3", {"unrotated_layers": (3,), "tied_head": True},
        hf={"no_rope_layers": [1, 1, 1, 0]}, interleaved=True,
    ),
    "phi3": Family(
        "phi3",
        {"n_rotated": 6, "windows": (20,) * 4, "rope_scaling": RopeScaling(
            "longrope", 4.0, 64, short_factors=tuple(SHORT), long_factors=tuple(LONG))},
        hf={"sliding_window": 20, "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 64,
            "rope_scaling": {"type": "su", "short_factor": SHORT, "long_factor": LONG}},
        gguf={"attention.sliding_window": _WINDOW, "rope.dimension_count": (U32, 6),
              "rope.scaling.original_context_length": (U32, 64),
              "rope.scaling.attn_factor": (F32, math.sqrt(1 + math.log(4) / math.log(64)))},
        vectors={"rope_factors_short.weight": SHORT, "rope_factors_long.weight": LONG},
        parts=FUSED, differs=("rope_scaling",),
    ),
    "qwen2": Family(
        "qwen2", {"rope_scaling": YARN, "max_seq_len": 256},
        hf={"max_position_embeddings": 64, "rope_scaling": {**_YARN_HF, "type": "yarn"}},
        gguf=_YARN_GGUF, differs=("rope_scaling",),
    ),
    "qwen3": Family("qwen3", {"tied_head": True}),
    "gemma": Family("gemma", _POST, hf={"hidden_act": "gelu"}),
    "gemma2": Family(
        "gemma2",
        {**_POST, "windows": _NARROW, "attn_softcap": 2.0, "logit_softcap": 4.0,
         "attn_scale": 1 / math.sqrt(12)},
        hf={"sliding_window": 20, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0,
            "query_pre_attn_scalar": 12},
        gguf={"attention.sliding_window": _WINDOW, "attn_logit_softcapping": (F32, 2.0),
              "final_logit_softcapping": (F32, 4.0), "attention.scale": (F32, 1 / math.sqrt(12))},
    ),
    "gemma3": Family(
        "gemma3_text",
        {**_POST, "n_layers": 7, "windows": (20, 20, 20, 20, 20, 0, 20), "rope_theta": 1e6,
         "local_rope_theta": 10000.0, "rope_scaling": RopeScaling("linear", 8.0),
         "attn_scale": 1 / math.sqrt(12)},
        hf={"sliding_window": 20, "query_pre_attn_scalar": 12,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        gguf={"attention.sliding_window": _WINDOW, "rope.scaling.type": (STRING, "linear"),
              "rope.scaling.factor": (F32, 8.0), "attention.scale": (F32, 1 / math.sqrt(12))},
        gguf_arch="gemma3",
    ),
    "exaone4": Family(
        "exaone4", {"windows": (20, 20, 20, 0), "unrotated_layers": (3,)},
        hf={"sliding_window": 20, "sliding_window_pattern": 4},
        gguf={"attention.sliding_window": _WINDOW},
    ),
    "seed_oss": Family("seed_oss"),
    "glm4": Family(
        "glm4", {"n_rotated": 4, "rope_style": "interleaved"},
        gguf={"rope.dimension_count": (U32, 4)}, parts=("w_gate_up", "bq", "bk", "bv"),
    ),
    "ernie4_5": Family(
        "ernie4_5", {"rope_style": "interleaved", "rope_theta": 5e5, "tied_head": True},
        hf={"use_bias": True}, parts=BIASES,
    ),
    "olmo2": Family("olmo2"),
    "mixtral": Family(
        "mixtral", {"n_experts": 5, "n_experts_used": 2, "expert_ffn_dim": 64},
        hf={"num_local_experts": 5, "num_experts_per_tok": 2},
        gguf={"expert_count": (U32, 5), "expert_used_count": (U32, 2)},
        gguf_arch="llama", interleaved=True,
    ),
    "qwen3_moe": Family(
        "qwen3_moe",
        {"n_experts": 7, "n_experts_used": 3, "expert_ffn_dim": 24, "normalise_experts": False},
        hf={"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 24},
        gguf={"expert_count": (U32, 7), "expert_used_count": (U32, 3),
              "expert_feed_forward_length": (U32, 24), "expert_weights_norm": (BOOL, False)},
        gguf_arch="qwen3moe",
    ),
    "gpt_oss": Family(
        "gpt_oss",
        {"n_experts": 6, "n_experts_used": 2, "expert_ffn_dim": 64, "windows": _NARROW,
         "rope_scaling": replace(YARN, truncate=False), "activation": "swiglu_clamped"},
        hf={"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 20,
            "rope_scaling": {**_YARN_HF, "truncate": False}},
        gguf={**_YARN_GGUF, "attention.sliding_window": _WINDOW, "expert_count": (U32, 6),
              "expert_used_count": (U32, 2), "expert_feed_forward_length": (U32, 64)},
        gguf_arch="gpt-oss", differs=("rope_scaling",),
    ),
    "olmo3": Family(
        "olmo3",
        {"windows": (20, 20, 20, 0), "rope_theta": 5e5, "local_rope_theta": 5e5,
         "rope_scaling": YARN},
        hf={"sliding_window": 20, "rope_scaling": _YARN_HF},
        gguf={**_YARN_GGUF, "attention.sliding_window": _WINDOW}, gguf_arch="olmo2",
        differs=("rope_scaling",),
    ),
}  # fmt: skip


def random_family(family: Family, seed: int) -> Tensors:
    """Random weights for every tensor of a family, under canonical names.

    Shapes: matrices [N, K] f32 with a spread of 1.3/sqrt(K), norms near 1 with their offset
    """
    cfg, rng = family.config, np.random.default_rng(seed)
    rows = find(family.arch).TENSORS
    chosen = {f"layers.0.{part}" for part in family.parts}
    chosen |= {row.name.replace("{i}", "0") for row in rows if not row.optional and not row.parts}
    tensors: Tensors = {}
    for row, _, name in expand(settled(rows, chosen), cfg):
        shape = cfg.sizes(row.shape)
        noise = rng.standard_normal(shape)
        if len(shape) > 1:
            tensors[name] = (1.3 * noise / math.sqrt(shape[1])).astype(np.float32)
        elif name.endswith("norm"):
            tensors[name] = (1 - cfg.norm_offset + 0.2 * noise).astype(np.float32)
        else:
            tensors[name] = (0.3 * noise).astype(np.float32)
    return tensors
