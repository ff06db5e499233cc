"""The telling parts of config.json files as they were published, and what they must mean."""

from __future__ import annotations

from typing import Any

import pytest

from rllama.config import ModelConfig, RopeScaling
from rllama.dtypes import BF16
from rllama.formats.fields import Fields
from rllama.formats.hparams_hf import hf_config
from rllama.models import find


def _sizes(dim: int, ffn_dim: int, n_layers: int, n_heads: int, n_kv_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": dim, "intermediate_size": ffn_dim, "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads, "num_key_value_heads": n_kv_heads, "rms_norm_eps": 1e-6,
        "vocab_size": 1000,
    }  # fmt: skip


_GEMMA3_27B = {
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
    "eos_token_id": [1, 106],
    "text_config": {
        **_sizes(5376, 21504, 62, 32, 16), "head_dim": 128, "model_type": "gemma3_text",
        "query_pre_attn_scalar": 168, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}  # fmt: skip

# name -> (config.json, what it means)
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "LLaMA-7B": (
        {**_sizes(4096, 11008, 32, 32, 32), "architectures": ["LLaMAForCausalLM"],
         "model_type": "llama", "max_sequence_length": 2048, "hidden_act": "silu",
         "pad_token_id": -1},
        {"max_seq_len": 2048, "rope_theta": 10000.0, "windows": ()},
    ),
    "Vicuna-7B-16k": (
        {**_sizes(4096, 11008, 32, 32, 32), "architectures": ["LlamaForCausalLM"],
         "model_type": "llama", "max_position_embeddings": 4096, "max_sequence_length": 16384,
         "rope_scaling": {"factor": 4.0, "type": "linear"}, "pretraining_tp": 1},
        {"max_seq_len": 16384, "rope_scaling": RopeScaling("linear", 4.0)},
    ),
    "Llama-3.2-1B": (
        {**_sizes(2048, 8192, 16, 32, 8), "architectures": ["LlamaForCausalLM"],
         "model_type": "llama", "attention_bias": False, "mlp_bias": False, "head_dim": 64,
         "max_position_embeddings": 131072, "rope_theta": 500000.0, "tie_word_embeddings": True,
         "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                          "original_max_position_embeddings": 8192, "rope_type": "llama3"}},
        {"rope_scaling": RopeScaling("llama3", 32.0, 8192), "tied_head": True},
    ),
    "Mistral-7B-v0.1": (
        {**_sizes(4096, 14336, 32, 32, 8), "architectures": ["MistralForCausalLM"],
         "model_type": "mistral", "max_position_embeddings": 32768, "sliding_window": 4096},
        {"windows": (4096,) * 32},
    ),
    "Mistral-7B-v0.2": (
        {**_sizes(4096, 14336, 32, 32, 8), "model_type": "mistral", "sliding_window": None,
         "max_position_embeddings": 32768, "rope_theta": 1e6},
        {"windows": (), "rope_theta": 1e6},
    ),
    "Ministral-3-3B": (
        {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
         "tie_word_embeddings": True, "text_config": {
             **_sizes(3072, 9216, 26, 32, 8), "head_dim": 128, "model_type": "ministral3",
             "max_position_embeddings": 262144, "sliding_window": None,
             "rope_parameters": {
                 "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1,
                 "mscale": 1.0, "mscale_all_dim": 1.0, "rope_theta": 1000000.0,
                 "original_max_position_embeddings": 16384, "rope_type": "yarn", "type": "yarn"}}},
        {"max_seq_len": 262144, "tied_head": True, "arch": "ministral3",
         "rope_scaling": RopeScaling("yarn", 16.0, 16384, mscale=1.0, mscale_all_dim=1.0,
                                     query_growth=0.1)},
    ),
    "DeepSeek-R1-Distill-Qwen-7B": (
        {**_sizes(3584, 18944, 28, 28, 4), "architectures": ["Qwen2ForCausalLM"],
         "model_type": "qwen2", "max_position_embeddings": 131072, "max_window_layers": 28,
         "rope_theta": 10000, "sliding_window": 4096, "use_mrope": False,
         "use_sliding_window": False},
        {"windows": (), "max_seq_len": 131072, "head_dim": 128},
    ),
    "Phi-3-mini-128k": (
        {**_sizes(3072, 8192, 32, 32, 32), "architectures": ["Phi3ForCausalLM"],
         "model_type": "phi3", "attention_bias": False, "max_position_embeddings": 131072,
         "original_max_position_embeddings": 4096, "sliding_window": 262144,
         "rope_scaling": {"long_factor": [2.0] * 48, "short_factor": [1.0] * 48, "type": "su"}},
        {"windows": (), "n_rotated": 0, "rope_scaling": RopeScaling(
            "longrope", 32.0, 4096, short_factors=(1.0,) * 48, long_factors=(2.0,) * 48)},
    ),
    "Phi-4-mini": (
        {**_sizes(3072, 8192, 32, 24, 8), "model_type": "phi3", "full_attn_mod": 1,
         "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False,
         "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
         "partial_rotary_factor": 0.75, "tie_word_embeddings": True,
         "rope_scaling": {"long_factor": [2.0] * 48, "short_factor": [1.0] * 48,
                          "type": "longrope"}},
        {"n_rotated": 96, "tied_head": True},
    ),
    "Gemma-2-9B": (
        {**_sizes(3584, 14336, 42, 16, 8), "architectures": ["Gemma2ForCausalLM"],
         "model_type": "gemma2", "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
         "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 8192,
         "query_pre_attn_scalar": 256, "sliding_window": 4096, "cache_implementation": "hybrid"},
        {"windows": (4096, 0) * 21, "attn_softcap": 50.0, "logit_softcap": 30.0,
         "attn_scale": 1 / 16, "embed_scale": 59.75, "norm_offset": 1.0, "tied_head": True,
         "activation": "gelu_tanh"},
    ),
    "Gemma-3-27B": (
        _GEMMA3_27B,
        {"windows": ((1024,) * 5 + (0,)) * 10 + (1024,) * 2, "rope_theta": 1e6,
         "local_rope_theta": 10000.0, "rope_scaling": RopeScaling("linear", 8.0),
         "attn_scale": pytest.approx(168**-0.5), "embed_scale": 73.5, "max_seq_len": 131072,
         "eos_token_ids": (1, 106), "head_dim": 128},
    ),
    "SmolLM3-3B": (
        {**_sizes(2048, 11008, 36, 16, 4), "model_type": "smollm3", "max_window_layers": 28,
         "layer_types": ["full_attention"] * 36, "no_rope_layers": [1, 1, 1, 0] * 9,
         "max_position_embeddings": 65536, "rope_theta": 5000000.0, "sliding_window": None,
         "use_sliding_window": False},
        {"unrotated_layers": tuple(range(3, 36, 4)), "windows": (), "tied_head": True},
    ),
    "Olmo-3-7B": (
        {**_sizes(4096, 11008, 32, 32, 32), "architectures": ["Olmo3ForCausalLM"],
         "model_type": "olmo3", "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
         "max_position_embeddings": 65536, "rope_theta": 500000, "sliding_window": 4096,
         "rope_scaling": {"attention_factor": 1.2, "beta_fast": 32.0, "beta_slow": 1.0,
                          "factor": 8.0, "original_max_position_embeddings": 8192,
                          "rope_type": "yarn"}},
        {"windows": (4096, 4096, 4096, 0) * 8, "local_rope_theta": 500000.0,
         "rope_scaling": RopeScaling("yarn", 8.0, 8192, attn_factor=1.2)},
    ),
    "Granite-3.3-8B": (
        {**_sizes(4096, 12800, 40, 32, 8), "architectures": ["GraniteForCausalLM"],
         "model_type": "granite", "attention_multiplier": 0.0078125, "embedding_multiplier": 12.0,
         "logits_scaling": 16.0, "residual_multiplier": 0.22, "attention_bias": False,
         "max_position_embeddings": 131072, "tie_word_embeddings": True},
        {"attn_scale": 0.0078125, "embed_scale": 12.0, "logit_scale": 1 / 16,
         "residual_scale": 0.22},
    ),
}  # fmt: skip


def read(config: dict[str, Any]) -> ModelConfig:
    text = config.get("text_config", config)
    is_tied = text["model_type"].startswith(("gemma", "smollm3")) or config.get(
        "tie_word_embeddings", False
    )
    return hf_config(
        Fields(config, "config.json"), None, vocab_size=1000, embed_dtype=BF16,
        tensors={"embed"} if is_tied else {"embed", "lm_head"}, name="", find_arch=find,
    )  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_means(name: str) -> None:
    config, meant = PUBLISHED[name]
    got = read(config)
    assert {key: getattr(got, key) for key in meant} == meant
