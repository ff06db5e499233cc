"""From the keys of a GGUF file to a ModelConfig."""

from __future__ import annotations

import math

from rllama.config import GenerationDefaults, ModelConfig
from rllama.errors import UnsupportedError
from rllama.formats.fields import Fields
from rllama.formats.gguf_families import gguf_family
from rllama.formats.gguf_header import GgufArray, GgufHeader
from rllama.formats.hparams import (
    FindArch,
    build,
    generation_defaults,
    head_dim_of,
    require_arch,
)
from rllama.formats.hparams_gguf_attention import attention_numbers, attention_scale
from rllama.formats.hparams_gguf_rope import Factors, rope_numbers

_SAMPLING = (("temperature", "temp"), ("top_k", "top_k"), ("top_p", "top_p"), ("min_p", "min_p"),
             ("repetition_penalty", "penalty_repeat"))  # fmt: skip


def gguf_config(
    header: GgufHeader,
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
    where = header.cursor.file.where
    fields = Fields(header.values, where)
    arch = _gguf_arch(fields, find_arch)
    key = f"{arch}.".__add__
    sizes = ("embedding_length", "block_count", "feed_forward_length", "attention.head_count",
             "context_length", "attention.layer_norm_rms_epsilon")  # fmt: skip
    fields.require(*(key(name) for name in sizes))
    _refuse_gguf_experts(fields, arch)
    n_layers = fields.whole(key("block_count"), high=4096)
    dim = fields.whole(key("embedding_length"))
    n_heads, n_kv_heads, head_dim = _heads(fields, arch, n_layers, dim)
    family = gguf_family(arch)
    known = n_tokens or vocab_size
    kind = header.values.get("tokenizer.ggml.model")
    return build(
        where, arch=arch, dim=dim, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads,
        head_dim=head_dim, vocab_size=vocab_size, tied_head=tied_head,
        ffn_dim=_per_layer(fields, key("feed_forward_length"), n_layers, None),
        **rope_numbers(fields, arch, family, head_dim, rope_factors or {}),
        **attention_numbers(fields, arch, family, n_layers),
        attn_scale=attention_scale(fields, arch, family, n_layers, dim // n_heads),
        norm_eps=fields.number(key("attention.layer_norm_rms_epsilon"), high=1.0),
        rope_style=family.rope_style,
        activation=family.activation,
        embed_scale=fields.number_or(math.sqrt(dim) if family.scales_embedding else 1.0,
                                     key("embedding_scale")),
        residual_scale=fields.number_or(1.0, key("residual_scale")),
        logit_scale=1.0 / fields.number_or(1.0, key("logit_scale")),
        generation=_generation(fields),
        bos_token_id=fields.token_id("tokenizer.ggml.bos_token_id", known,
                                     1 if kind == "llama" and known > 1 else None),
        eos_token_ids=_gguf_eos(fields, known, kind == "llama"),
        add_bos=fields.flag("tokenizer.ggml.add_bos_token")
        if "tokenizer.ggml.add_bos_token" in fields else (True if kind == "llama" else None),
        name=fields.text("general.name", ""),
    )  # fmt: skip


def _gguf_arch(fields: Fields, find_arch: FindArch | None) -> str:
    if "general.architecture" not in fields:
        raise fields.fail("general.architecture", "is missing: the file names no architecture")
    arch = fields.text("general.architecture")
    require_arch(arch, find_arch, fields.where)
    if "split.count" in fields and fields.whole("split.count", low=0, high=65535) > 1:
        raise UnsupportedError(
            f"{fields.where}: split.count: a model split over several GGUF files is not supported; "
            "merge the files into one"
        )
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


def _refuse_gguf_experts(fields: Fields, arch: str) -> None:
    for name in ("expert_count", "expert_used_count"):
        key = f"{arch}.{name}"
        if fields.whole(key, 0, low=0) > 0:
            raise UnsupportedError(f"{fields.where}: {key}: mixtures of experts are not supported")


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
