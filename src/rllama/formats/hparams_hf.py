"""From config.json and generation_config.json to a ModelConfig."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import replace
from typing import Any

import numpy as np

from rllama.config import Activation, GenerationDefaults, ModelConfig
from rllama.dtypes import F32, DType
from rllama.errors import UnsupportedError
from rllama.formats.fields import Fields, shown
from rllama.formats.hf_families import HfFamily, hf_family
from rllama.formats.hparams import (
    FindArch,
    build,
    generation_defaults,
    head_dim_of,
    require_arch,
)
from rllama.formats.hparams_experts import hf_experts
from rllama.formats.hparams_hf_attention import attention_numbers
from rllama.formats.hparams_hf_rope import rope_numbers

# Keys that change the result where they are set, in ways that are not computed here.
_REFUSED = ("use_bidirectional_attention", "clip_qkv", "alibi", "attention_chunk_size", "use_mrope",
            "qk_layernorm", "use_qk_norm", "parallel_attn", "attn_temperature_tuning")  # fmt: skip
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}  # fmt: skip
# Models that also see, whose text part is a model of its own in `text_config`.
_SEEING = ("gemma3", "mistral3")
_SHARED = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "quantization_config")
# A flag of config.json and a tensor that tells whether it is so.
_BIASES = (("attention_bias", "layers.0.bq"), ("attention_out_bias", "layers.0.bo"),
           ("mlp_bias", "layers.0.b_gate"), ("use_bias", "layers.0.bq"))  # fmt: skip


def hf_config(
    config: Fields,
    generation: Fields | None,
    *,
    vocab_size: int,
    embed_dtype: DType,
    tensors: Container[str],
    name: str,
    find_arch: FindArch | None = None,
) -> ModelConfig:
    """Translate config.json and, where there is one, generation_config.json.

    Units:   vocab_size rows of the embedding; tensors by their canonical names
    Raises:  ConfigError, UnsupportedError
    """
    outer = config
    arch, config = text_part(outer, find_arch)
    family = hf_family(arch)
    config = Fields({**family.assumed, **config.values}, config.where)
    _refuse_variants(config)
    _check_biases(config, tensors)
    stated = config.whole("vocab_size")
    if stated != vocab_size:
        raise config.fail("vocab_size", f"is {stated}, but the embedding has {vocab_size} rows")
    n_layers = config.whole("num_hidden_layers", high=4096)
    n_heads, dim = config.whole("num_attention_heads"), config.whole("hidden_size")
    head_dim = head_dim_of(config, "head_dim", dim, n_heads, "hidden_size")
    return build(
        config.where, arch=arch, dim=dim, n_heads=n_heads, n_layers=n_layers, head_dim=head_dim,
        ffn_dim=config.whole("intermediate_size"),
        n_kv_heads=config.whole("num_key_value_heads", n_heads),
        vocab_size=vocab_size, norm_eps=config.number("rms_norm_eps", high=1.0),
        rope_style=family.rope_style,
        **rope_numbers(config, head_dim), **attention_numbers(config, family, n_layers),
        **_scales(config, family, dim, embed_dtype), **hf_experts(config),
        activation=_activation(config, family),
        tied_head=_hf_tied(config, outer, "lm_head" in tensors),
        **_special_ids(config, generation, vocab_size), name=name,
        generation=_generation_defaults(generation),
    )  # fmt: skip


def text_part(config: Fields, find_arch: FindArch | None) -> tuple[str, Fields]:
    """The model type and its numbers; `architectures`, if given, must name its causal decoder.

    Raises:  UnsupportedError for an architecture that cannot run, ConfigError
    """
    arch, suffix = config.text("model_type"), "forcausallm"
    text = config
    if arch in _SEEING and isinstance(config.values.get("text_config"), dict):
        inner: dict[str, Any] = config.values["text_config"]
        shared = {key: config.values[key] for key in _SHARED if key in config}
        text = Fields({**shared, **inner}, f"{config.where}: text_config")
        suffix = "forconditionalgeneration"
    wanted = arch.removesuffix("_text").replace("_", "") + suffix
    inner_arch = text.text("model_type")
    require_arch(inner_arch, find_arch, config.where)
    names = config.values.get("architectures")
    if names is not None and not (
        isinstance(names, list)
        and [str(name).lower().replace("_", "") for name in names] == [wanted]
    ):
        raise UnsupportedError(
            f"{config.where}: architectures {shown(names)} with model_type {shown(arch)} is not "
            "supported; only a causal decoder of that type is"
        )
    return inner_arch, text


def _refuse_variants(config: Fields) -> None:
    for key in _REFUSED:
        if config.values.get(key):
            raise UnsupportedError(
                f"{config.where}: {key} {shown(config.values[key])} is not supported"
            )


def _check_biases(config: Fields, tensors: Container[str]) -> None:
    for key, tensor in _BIASES:
        if key in config and config.flag(key) != (tensor in tensors):
            there = "are not there" if config.flag(key) else "are there"
            raise config.fail(key, f"is {str(config.flag(key)).lower()}, but the biases {there}")


def _activation(config: Fields, family: HfFamily) -> Activation:
    key = "hidden_activation" if "hidden_activation" in config else "hidden_act"
    name = config.text(key, "silu")
    found = family.activations.get(name) or _ACTIVATIONS.get(name)
    if found is None:
        raise UnsupportedError(f"{config.where}: {key} {shown(name)} is not supported")
    return found


def _scales(config: Fields, family: HfFamily, dim: int, embed_dtype: DType) -> dict[str, Any]:
    """What embeddings, branches, logits and norms are multiplied by or raised by."""
    embed_scale = config.number("embedding_multiplier", 1.0)
    if family.scales_embedding:
        embed_scale = _rounded(math.sqrt(dim), embed_dtype)
    return {
        "embed_scale": embed_scale,
        "residual_scale": config.number("residual_multiplier", 1.0),
        "logit_scale": 1.0 / config.number("logits_scaling", 1.0),
        "norm_offset": family.norm_offset,
    }


def _rounded(value: float, dtype: DType) -> float:
    """A number as a tensor of that type holds it: the scale has the type of the embedding."""
    from rllama.quant import dequantize, quantize  # all codecs, which few models need

    name = dtype.name if dtype.is_float else F32.name
    held = quantize(name, np.array([value], dtype=np.float32))
    return float(dequantize(name, held.tobytes(), (1,))[0])


def _hf_tied(config: Fields, outer: Fields, has_head: bool) -> bool:
    """Whether the head is the embedding; the tensors tell where the two parts of a model that also
    sees contradict each other (transformers goes by the outer one, and assumes that it is true)."""
    key = "tie_word_embeddings"
    tied = config.flag(key, not has_head)
    if "text_config" in outer and outer.flag(key, True) != tied:
        return not has_head
    if not tied and not has_head:
        raise config.fail(key, "is false, but the tensor lm_head.weight is missing")
    return tied


def _special_ids(config: Fields, generation: Fields | None, vocab_size: int) -> dict[str, Any]:
    """Where a text begins and ends; both files may name ends."""
    ends = config.token_ids("eos_token_id", vocab_size)
    if generation is not None:
        ends += generation.token_ids("eos_token_id", vocab_size)
    return {
        "bos_token_id": config.token_id("bos_token_id", vocab_size),
        "eos_token_ids": tuple(dict.fromkeys(ends)),
    }


def _generation_defaults(generation: Fields | None) -> GenerationDefaults:
    if generation is None:
        return GenerationDefaults()
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    values = {name: generation.values.get(name) for name in names}
    found = generation_defaults(values, generation.where)
    if generation.flag("do_sample", True):
        return found
    return replace(found, temperature=0.0)  # the likeliest token, whatever the file says beside it
