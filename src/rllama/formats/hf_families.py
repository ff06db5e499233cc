"""What a config.json leaves unsaid: numbers that transformers' config classes and models assume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rllama.config import Activation, RopeStyle


@dataclass(frozen=True, slots=True)
class HfFamily:
    """The unwritten numbers of one model_type.

    Notes:   `assumed` stands in for keys that are absent (one that is null is said to be nothing);
             norm_offset is added to the weights of norms; scales_embedding: embeddings are
             multiplied by the root of their width; turns_wide_layers: layers that see everything
             turn too where others have a window; turned_experts: stacks of experts have columns
             first, gate and up in turns; `activations` renames old spellings
    Source:  transformers, configuration_*.py and modeling_*.py
    """

    assumed: Mapping[str, Any] = field(default_factory=dict)
    norm_offset: float = 0.0
    scales_embedding: bool = False
    rope_style: RopeStyle = "half"
    turns_wide_layers: bool = True
    turned_experts: bool = False
    activations: Mapping[str, Activation] = field(default_factory=dict)


_NO_WINDOW = {"use_sliding_window": False}
_LLAMA = {**_NO_WINDOW, "attention_bias": False, "mlp_bias": False}
_QWEN = {**_NO_WINDOW, "sliding_window": 4096, "max_window_layers": 28}
_GEMMA = {"head_dim": 256, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
          "attention_bias": False}  # fmt: skip
_GEMMA2 = {**_GEMMA, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
           "sliding_window": 4096}  # fmt: skip
_GEMMA3 = {
    **_GEMMA2, "sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
    "max_position_embeddings": 131072, "use_bidirectional_attention": False,
}  # fmt: skip

_PLAIN = HfFamily()

FAMILIES: dict[str, HfFamily] = {
    "llama": HfFamily(_LLAMA),
    "granite": HfFamily({**_LLAMA, "attention_multiplier": 1.0}),
    "mistral": HfFamily({"sliding_window": 4096}),
    "ministral": HfFamily({"sliding_window": 4096}),
    "qwen2": HfFamily(_QWEN),
    "qwen3": HfFamily({**_QWEN, "attention_bias": False, "head_dim": 128}),
    "phi3": HfFamily({"original_max_position_embeddings": 4096}),
    "smollm3": HfFamily(
        {**_LLAMA, "no_rope_layer_interval": 4, "rope_theta": 2e6, "tie_word_embeddings": True}
    ),
    "olmo2": HfFamily({**_NO_WINDOW, "attention_bias": False}),
    "olmo3": HfFamily(
        {"attention_bias": False, "sliding_window": 4096, "sliding_window_pattern": 4,
         "rope_theta": 5e5, "rope_local_base_freq": 5e5}
    ),
    "mixtral": HfFamily({"num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1e6}),
    "qwen3_moe": HfFamily(
        {**_NO_WINDOW, "attention_bias": False, "num_experts_per_tok": 8,
         "norm_topk_prob": False, "moe_intermediate_size": 768}
    ),
    "gpt_oss": HfFamily(
        {"attention_bias": True, "head_dim": 64, "sliding_window": 128,
         "sliding_window_pattern": 2, "num_experts_per_tok": 4, "rope_theta": 150000.0},
        turned_experts=True, activations={"silu": "swiglu_clamped"},
    ),
    "exaone4": HfFamily({"sliding_window": 4096, "sliding_window_pattern": 4},
                        turns_wide_layers=False),
    "seed_oss": HfFamily({**_LLAMA, "attention_bias": True, "attention_out_bias": False,
                          "head_dim": 128}),
    "glm4": HfFamily({**_NO_WINDOW, "attention_bias": True, "head_dim": 128,
                      "partial_rotary_factor": 0.5}, rope_style="interleaved"),
    "ernie4_5": HfFamily({**_NO_WINDOW, "use_bias": False, "head_dim": 128, "rope_theta": 5e5,
                          "tie_word_embeddings": True}, rope_style="interleaved"),
    "helium": HfFamily({**_LLAMA, "head_dim": 128, "rope_theta": 1e5}, rope_style="interleaved"),
    "gemma": HfFamily({**_GEMMA, **_NO_WINDOW, "hidden_act": "gelu_pytorch_tanh"},
                      norm_offset=1.0, scales_embedding=True, activations={"gelu": "gelu_tanh"}),
    "gemma2": HfFamily({**_GEMMA2, "sliding_window_pattern": 2, "attn_logit_softcapping": 50.0,
                        "final_logit_softcapping": 30.0}, norm_offset=1.0, scales_embedding=True),
    "gemma3_text": HfFamily(_GEMMA3, norm_offset=1.0, scales_embedding=True),
}  # fmt: skip


def hf_family(model_type: str) -> HfFamily:
    """The row of a model_type; an empty one where it assumes nothing."""
    return FAMILIES.get(model_type, _PLAIN)
