"""How many experts a model has and how it weighs them, from config.json and from GGUF keys."""

from __future__ import annotations

from typing import Any

from rllama.errors import UnsupportedError
from rllama.formats.experts import MAX_EXPERTS
from rllama.formats.fields import Fields, shown

# GGUF keys of kinds of mixtures that are not computed here: the values that say so.
_GGUF_REFUSED = ("expert_shared_count", "expert_shared_feed_forward_length",
                 "leading_dense_block_count", "expert_group_used_count",
                 "moe_every_n_layers")  # fmt: skip
_SOFTMAX_GATES = (0, 1, 3)  # unsaid; softmax over all; softmax over the chosen
# Architectures whose files tell by a number alone that their feed-forward is a mixture.
_GGUF_MIXTURES = {"llama": "mixtral"}


def hf_experts(config: Fields) -> dict[str, Any]:
    """The fields of ModelConfig that a mixture takes; none for a dense model.

    Raises:  ConfigError, UnsupportedError
    """
    key = "num_local_experts" if "num_local_experts" in config else "num_experts"
    if not config.whole(key, 0, low=0, high=MAX_EXPERTS):
        return {}
    if config.values.get("mlp_only_layers") or config.whole("decoder_sparse_step", 1) != 1:
        raise UnsupportedError(
            f"{config.where}: mlp_only_layers, decoder_sparse_step: layers without experts among "
            "those with experts are not supported"
        )
    for name, want in (("swiglu_limit", 7.0), ("swiglu_alpha", 1.702)):
        if config.number(name, want) != want:
            raise UnsupportedError(
                f"{config.where}: {name} {shown(config.values[name])} is not supported; {want} is"
            )
    used = "num_experts_per_tok" if "num_experts_per_tok" in config else "experts_per_token"
    width = "moe_intermediate_size"
    return {
        "n_experts": config.whole(key, high=MAX_EXPERTS),
        "n_experts_used": config.whole(used, high=MAX_EXPERTS),
        "expert_ffn_dim": config.whole(width if width in config else "intermediate_size"),
        "normalise_experts": config.flag("norm_topk_prob", True),
    }


def gguf_experts(fields: Fields, arch: str) -> dict[str, Any]:
    """The same, with the architecture where it has another name as a mixture.

    Raises:  ConfigError, UnsupportedError
    """
    key = f"{arch}.".__add__
    n_experts = fields.whole(key("expert_count"), 0, low=0, high=MAX_EXPERTS)
    n_used = fields.whole(key("expert_used_count"), 0, low=0, high=MAX_EXPERTS)
    if bool(n_used) != bool(n_experts):
        raise fields.fail(key("expert_used_count"), f"is {n_used} of {n_experts} experts")
    if not n_experts:
        return {}
    for name in _GGUF_REFUSED:
        if fields.whole(key(name), 0, low=0):
            raise UnsupportedError(f"{fields.where}: {key(name)} is not supported")
    if fields.whole(key("expert_gating_func"), 0, low=0) not in _SOFTMAX_GATES:
        raise UnsupportedError(f"{fields.where}: {key('expert_gating_func')}: not by softmax")
    if fields.number_or(1.0, key("expert_weights_scale")) != 1.0:
        raise UnsupportedError(f"{fields.where}: {key('expert_weights_scale')} is not supported")
    width = key("expert_feed_forward_length")
    return {
        "arch": _GGUF_MIXTURES.get(arch, arch),
        "n_experts": n_experts,
        "n_experts_used": n_used,
        "expert_ffn_dim": fields.whole(width if width in fields else key("feed_forward_length")),
        "normalise_experts": fields.flag(key("expert_weights_norm"), True),
    }
