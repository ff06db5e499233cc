"""From the keys of a GGUF file to a ModelConfig."""

from __future__ import annotations

import math
from typing import Any

from rllama.config import GenerationDefaults, ModelConfig
from rllama.errors import UnsupportedError
from rllama.formats.fields import Fields, shown
from rllama.formats.gguf_families import GgufFamily, gguf_family
from rllama.formats.gguf_header import GgufArray
from rllama.formats.hparams import (
    FindArch,
    build,
    generation_defaults,
    head_dim_of,
    require_arch,
)
from rllama.formats.hparams_experts import gguf_experts
from rllama.formats.hparams_gguf_attention import attention_numbers
from rllama.formats.hparams_gguf_rope import Factors, rope_numbers

# Keys that change the result where they are set, in ways that are not computed here.
_REFUSED = ("attention.clamp_kqv", "attention.max_alibi_bias", "attention.kv_lora_rank",
            "attention.shared_kv_layers", "attention.key_length_swa", "rope.dimension_sections",
            "rope.scaling.alpha", "router_logit_softcapping")  # fmt: skip
_SAMPLING = (("temperature", "temp"), ("top_k", "top_k"), ("top_p", "top_p"), ("min_p", "min_p"),
             ("repetition_penalty", "penalty_repeat"))  # fmt: skip


def gguf_config(
    fields: Fields,
    *,
    vocab_size: int,
    n_tokens: int,
    tied_head: bool,
    rope_factors: Factors | None = None,
    find_arch: FindArch | None = None,
) -> ModelConfig:
    """Translate GGUF keys.

    Units:   vocab_size rows of the embedding, n_tokens pieces of the vocabulary (0: none)
    Notes:   rope_factors as `rope_numbers` has them
    Raises:  ConfigError, UnsupportedError
    """
    where = fields.where
    arch = _gguf_arch(fields, find_arch)
    key = f"{arch}.".__add__
    sizes = ("embedding_length", "block_count", "feed_forward_length", "attention.head_count",
             "context_length", "attention.layer_norm_rms_epsilon")  # fmt: skip
    fields.require(*(key(name) for name in sizes))
    _refuse_variants(fields, arch)
    n_layers = fields.whole(key("block_count"), high=4096)
    dim = fields.whole(key("embedding_length"))
    n_heads, n_kv_heads, head_dim = _heads(fields, arch, n_layers, dim)
    family = gguf_family(arch)
    attention = attention_numbers(fields, arch, family, n_layers, dim // n_heads)
    return build(
        where, dim=dim, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads,
        head_dim=head_dim, vocab_size=vocab_size, tied_head=tied_head,
        ffn_dim=_per_layer(fields, key("feed_forward_length"), n_layers, None),
        **rope_numbers(fields, arch, family, head_dim, rope_factors or {},
                       has_windows=bool(attention["windows"])),
        **attention,
        norm_eps=fields.number(key("attention.layer_norm_rms_epsilon"), high=1.0),
        rope_style=family.rope_style,
        activation=family.activation, **({"arch": arch} | gguf_experts(fields, arch)),
        **_scales(fields, arch, family, dim),
        **_special_ids(fields, n_tokens or vocab_size),
        name=fields.text("general.name", ""),
        generation=_generation(fields),
    )  # fmt: skip


def _gguf_arch(fields: Fields, find_arch: FindArch | None) -> str:
    if "general.architecture" not in fields:
        raise fields.fail("general.architecture", "is missing: the file names no architecture")
    arch = fields.text("general.architecture")
    require_arch(arch, find_arch, fields.where)
    return arch


def _heads(fields: Fields, arch: str, n_layers: int, dim: int) -> tuple[int, int, int]:
    """Query heads, key heads and their width."""
    key = f"{arch}.".__add__
    n_heads = _per_layer(fields, key("attention.head_count"), n_layers, None)
    n_kv_heads = _per_layer(fields, key("attention.head_count_kv"), n_layers, n_heads)
    head_dim = head_dim_of(
        fields, key("attention.key_length"), dim, n_heads, key("embedding_length")
    )
    if fields.whole(key("attention.value_length"), head_dim) != head_dim:
        raise UnsupportedError(
            f"{fields.where}: {key('attention.value_length')} differs from key_length"
        )
    return n_heads, n_kv_heads, head_dim


def _per_layer(fields: Fields, key: str, n_layers: int, default: int | None) -> int:
    """A size that may also be given as an array with one equal entry per layer."""
    value = fields.values.get(key)
    if not isinstance(value, GgufArray):
        return fields.whole(key) if default is None else fields.whole(key, default)
    if value.numbers is None or value.numbers.dtype.kind not in "iu":
        raise fields.fail(key, f"is an {value}; whole numbers are wanted")
    if value.count != n_layers:
        raise fields.fail(key, f"is an {value}, but there are {n_layers} layers")
    if int(value.numbers.min()) != int(value.numbers.max()):
        raise UnsupportedError(f"{fields.where}: {key} differs from layer to layer")
    first = int(value.numbers[0])
    return Fields({key: first}, fields.where).whole(key)


def _refuse_variants(fields: Fields, arch: str) -> None:
    for name in _REFUSED:
        if value := fields.values.get(f"{arch}.{name}"):
            raise UnsupportedError(f"{fields.where}: {arch}.{name} {shown(value)} is not supported")
    if not fields.flag(f"{arch}.attention.causal", True):
        raise UnsupportedError(f"{fields.where}: {arch}.attention.causal: an encoder")


def _scales(fields: Fields, arch: str, family: GgufFamily, dim: int) -> dict[str, Any]:
    """What embeddings, branches and logits are multiplied by."""
    usual = math.sqrt(dim) if family.scales_embedding else 1.0
    return {
        "embed_scale": fields.number_or(usual, f"{arch}.embedding_scale"),
        "residual_scale": fields.number_or(1.0, f"{arch}.residual_scale"),
        "logit_scale": 1.0 / fields.number_or(1.0, f"{arch}.logit_scale"),
    }


def _special_ids(fields: Fields, n_tokens: int) -> dict[str, Any]:
    """Where a text begins and ends; those of SentencePiece are known without a word."""
    is_spm = fields.values.get("tokenizer.ggml.model") == "llama"
    first = 1 if is_spm and n_tokens > 1 else None
    add_bos = "tokenizer.ggml.add_bos_token"
    return {
        "bos_token_id": fields.token_id("tokenizer.ggml.bos_token_id", n_tokens, first),
        "eos_token_ids": _gguf_eos(fields, n_tokens, is_spm),
        "add_bos": fields.flag(add_bos) if add_bos in fields else (True if is_spm else None),
    }


def _generation(fields: Fields) -> GenerationDefaults:
    """What the file recommends for sampling. Raises ConfigError where it is out of range."""
    values = {ours: fields.values.get(f"general.sampling.{theirs}") for ours, theirs in _SAMPLING}
    return generation_defaults(values, fields.where)


def _gguf_eos(fields: Fields, n_tokens: int, is_spm: bool) -> tuple[int, ...]:
    default = 2 if is_spm and n_tokens > 2 else None
    found = [fields.token_id("tokenizer.ggml.eos_token_id", n_tokens, default)]
    for name in ("eot", "eom"):
        found.append(fields.token_id(f"tokenizer.ggml.{name}_token_id", n_tokens))
    for name in ("padding", "unknown", "seperator", "separator"):
        fields.token_id(f"tokenizer.ggml.{name}_token_id", n_tokens)
    return tuple(dict.fromkeys(token_id for token_id in found if token_id is not None))
