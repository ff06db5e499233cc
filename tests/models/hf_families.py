"""Small random models of every family, as transformers itself makes and computes them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

N_TOKENS = 300  # past the windows and the original contexts below

_SIZES = {
    "vocab_size": 131, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_HEAD = {"head_dim": 16}
_WINDOW = {"sliding_window": 40}
_PAIRS = [1.0 + 0.1 * i for i in range(8)]
_LONG = {
    "rope_type": "longrope", "short_factor": _PAIRS, "long_factor": [1.5 * x for x in _PAIRS],
    "rope_theta": 10000.0,
}  # fmt: skip
_YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128,
    "rope_theta": 10000.0, "beta_fast": 8.0,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 500000.0,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One model: its config class, what differs from _SIZES, and the context it is opened with."""

    config: str
    numbers: dict[str, Any] = field(default_factory=dict)
    max_seq_len: int | None = None


def _llama(**numbers: Any) -> Case:
    return Case("LlamaConfig", {**_HEAD, **numbers})


CASES: dict[str, Case] = {
    "llama": _llama(),
    "llama_tied": _llama(tie_word_embeddings=True, num_key_value_heads=1),
    "llama_biases": _llama(attention_bias=True, mlp_bias=True),
    "llama_gelu": _llama(hidden_act="gelu"),
    "llama_linear": _llama(rope_parameters={"rope_type": "linear", "factor": 3.0,
                                            "rope_theta": 10000.0}),
    "llama_dynamic": _llama(
        max_position_embeddings=128,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    ),
    "llama_yarn": _llama(rope_parameters=_YARN),
    "llama_yarn_loose": _llama(rope_parameters={**_YARN, "truncate": False, "mscale": 0.7,
                                                "mscale_all_dim": 1.3}),
    "llama_yarn_attn": _llama(rope_parameters={**_YARN, "attention_factor": 0.8}),
    "llama3": _llama(rope_parameters=_LLAMA3),
    "mistral": Case("MistralConfig", {**_HEAD, **_WINDOW}),
    "mistral_unbound": Case("MistralConfig", {**_HEAD, "sliding_window": None}),
    "ministral": Case("MinistralConfig", {
        **_HEAD, **_WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention",
                        "full_attention"],
    }),
    "ministral3": Case("Ministral3Config", {**_HEAD, "rope_parameters": {
        **_YARN, "original_max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    }}),
    "qwen2": Case("Qwen2Config", {}),
    "qwen2_windows": Case("Qwen2Config", {
        **_WINDOW, "use_sliding_window": True, "max_window_layers": 2, "tie_word_embeddings": True,
    }),
    "qwen3": Case("Qwen3Config", _HEAD),
    "qwen3_biases": Case("Qwen3Config", {
        **_HEAD, "attention_bias": True, "rope_parameters": _YARN,
    }),
    "granite": Case("GraniteConfig", {
        "embedding_multiplier": 6.0, "logits_scaling": 4.0, "residual_multiplier": 0.22,
        "attention_multiplier": 0.09, "tie_word_embeddings": True, "attention_bias": True,
    }),
    "phi3": Case("Phi3Config", {**_WINDOW, "original_max_position_embeddings": 512}),
    "phi3_long": Case("Phi3Config", {
        "hidden_size": 64, "original_max_position_embeddings": 128, "rope_parameters": _LONG,
    }),
    "phi3_short": Case("Phi3Config", {
        "hidden_size": 64, "original_max_position_embeddings": 320, "rope_parameters": _LONG,
    }, max_seq_len=320),
    "phi3_partial": Case("Phi3Config", {
        "hidden_size": 64, "original_max_position_embeddings": 128,
        "rope_parameters": {
            **_LONG, "partial_rotary_factor": 0.75, "short_factor": _PAIRS[:6],
            "long_factor": _PAIRS[1:7],
        },
    }),
    "gemma": Case("GemmaConfig", {**_HEAD, "num_key_value_heads": 1}),
    "gemma2": Case("Gemma2Config", {
        **_HEAD, **_WINDOW, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0,
    }),
    "gemma3": Case("Gemma3TextConfig", {
        **_HEAD, **_WINDOW, "query_pre_attn_scalar": 24, "num_hidden_layers": 7,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        },
    }),
    "smollm3": Case("SmolLM3Config", {"num_hidden_layers": 5}),
    "mixtral": Case("MixtralConfig", {**_HEAD, "num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral_windows": Case("MixtralConfig", {
        **_WINDOW, "num_local_experts": 3, "num_experts_per_tok": 3,
    }),
    "qwen3_moe": Case("Qwen3MoeConfig", {
        **_HEAD, "num_experts": 9, "num_experts_per_tok": 4, "moe_intermediate_size": 24,
    }),
    "qwen3_moe_normed": Case("Qwen3MoeConfig", {
        **_HEAD, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 56,
        "norm_topk_prob": True, "tie_word_embeddings": True,
    }),
    "gpt_oss": Case("GptOssConfig", {
        **_HEAD, **_WINDOW, "num_local_experts": 6, "num_experts_per_tok": 3,
        "rope_parameters": {**_YARN, "truncate": False, "beta_fast": 32.0},
    }),
    "exaone4": Case("Exaone4Config", {
        **_WINDOW, "num_hidden_layers": 5, "rope_parameters": _LLAMA3,
    }),
    "exaone4_wide": Case("Exaone4Config", {
        "sliding_window": None, "layer_types": ["full_attention"] * 4,
    }),
    "seed_oss": Case("SeedOssConfig", _HEAD),
    "glm4": Case("Glm4Config", _HEAD),
    "ernie4_5": Case("Ernie4_5Config", {**_HEAD, "use_bias": True}),
    "helium": Case("HeliumConfig", {"head_dim": 12}),
    "olmo2": Case("Olmo2Config", {}),
    "olmo3": Case("Olmo3Config", {
        **_WINDOW, "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": _YARN,
        },
    }),
}  # fmt: skip

FAST = ("llama_biases", "llama3", "mistral", "ministral3", "qwen2_windows", "qwen3", "granite",
        "phi3_partial", "gemma2", "gemma3", "smollm3", "olmo2", "mixtral", "qwen3_moe",
        "gpt_oss")  # fmt: skip


def random_hf_model(case: Case, seed: int) -> Any:
    """A model of transformers with weights that make its logits differ."""
    import torch
    import transformers

    numbers = deepcopy({**_SIZES, **case.numbers})  # config classes write into what they get
    config = getattr(transformers, case.config)(**numbers)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.float32).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=draw)
            if "norm" in name:
                weight += 0.2 * noise
            elif weight.ndim == 1 or name.endswith("_bias"):
                weight.copy_(0.3 * noise)
            elif weight.ndim == 3:
                weight.copy_(2.0 * noise / max(weight.shape[1:]) ** 0.5)
            else:
                weight.copy_(1.3 * noise / weight.shape[1] ** 0.5)
    return model


def hf_logits(model: Any, ids: list[int]) -> np.ndarray:
    """Logits of every position, [T, V]."""
    import torch

    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    return found


def hf_greedy(model: Any, ids: list[int], n: int) -> list[int]:
    """The likeliest continuation, computed anew for every token."""
    out = list(ids)
    for _ in range(n):
        out.append(int(hf_logits(model, out)[-1].argmax()))
    return out[len(ids) :]


def save_hf(model: Any, folder: Path) -> Path:
    """The folder that transformers itself writes."""
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder
