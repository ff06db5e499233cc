"""From each file family's numbers to a ModelConfig; errors name the file's own field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rllama.config import GenerationDefaults, ModelConfig, SamplingParams
from rllama.errors import ConfigError, UnsupportedError
from rllama.formats.fields import Fields, shown
from rllama.formats.gguf_header import GgufArray, GgufHeader

ARCHS = ("llama",)


def build(where: str, **numbers: Any) -> ModelConfig:
    """A ModelConfig whose own complaints also name the file. Raises ConfigError."""
    try:
        return ModelConfig(**numbers)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def require_arch(arch: str, where: str) -> None:
    """Raises UnsupportedError, naming the architecture, if we have no model for it."""
    if arch not in ARCHS:
        raise UnsupportedError(
            f"{where}: the architecture {shown(arch)} is not supported; known: {', '.join(ARCHS)}"
        )


# ---- GGUF ----


def gguf_config(
    header: GgufHeader, *, vocab_size: int, n_tokens: int, tied_head: bool
) -> ModelConfig:
    """Translate GGUF keys.

    Units:   vocab_size rows of the embedding, n_tokens pieces of the vocabulary (0: none)
    Raises:  ConfigError, UnsupportedError
    """
    where = header.cursor.file.where
    fields = Fields(header.values, where)
    arch = _gguf_arch(fields)
    key = f"{arch}.".__add__
    sizes = ("embedding_length", "block_count", "feed_forward_length", "attention.head_count",
             "context_length", "attention.layer_norm_rms_epsilon")  # fmt: skip
    fields.require(*(key(name) for name in sizes))
    _refuse_gguf_experts(fields, arch)
    n_layers = fields.whole(key("block_count"), high=4096)
    dim = fields.whole(key("embedding_length"))
    n_heads = _per_layer(fields, key("attention.head_count"), n_layers, None)
    n_kv_heads = _per_layer(fields, key("attention.head_count_kv"), n_layers, n_heads)
    head_dim = _head_dim(fields, key("attention.key_length"), dim, n_heads, key("embedding_length"))
    if fields.whole(key("attention.value_length"), head_dim) != head_dim:
        raise UnsupportedError(f"{where}: {key('attention.value_length')} differs from key_length")
    _check_gguf_rope(fields, arch, head_dim)
    known = n_tokens or vocab_size
    kind = header.values.get("tokenizer.ggml.model")
    return build(
        where, arch=arch, dim=dim, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads,
        head_dim=head_dim, vocab_size=vocab_size, tied_head=tied_head,
        ffn_dim=_per_layer(fields, key("feed_forward_length"), n_layers, None),
        max_seq_len=fields.whole(key("context_length")),
        norm_eps=fields.number(key("attention.layer_norm_rms_epsilon"), high=1.0),
        rope_theta=fields.number(key("rope.freq_base"), 10000.0),
        rope_style="interleaved",
        bos_token_id=fields.token_id("tokenizer.ggml.bos_token_id", known,
                                     1 if kind == "llama" and known > 1 else None),
        eos_token_ids=_gguf_eos(fields, known, kind == "llama"),
        add_bos=fields.flag("tokenizer.ggml.add_bos_token")
        if "tokenizer.ggml.add_bos_token" in fields else (True if kind == "llama" else None),
        name=fields.text("general.name", ""),
    )  # fmt: skip


def _gguf_arch(fields: Fields) -> str:
    if "general.architecture" not in fields:
        raise fields.fail("general.architecture", "is missing: the file names no architecture")
    arch = fields.text("general.architecture")
    require_arch(arch, fields.where)
    if "split.count" in fields and fields.whole("split.count", low=0, high=65535) > 1:
        raise UnsupportedError(
            f"{fields.where}: split.count: a model split over several GGUF files is not supported; "
            "merge the files into one"
        )
    return arch


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


def _head_dim(fields: Fields, key: str, dim: int, n_heads: int, dim_key: str) -> int:
    if key in fields:
        return fields.whole(key, high=1024)
    if dim % n_heads:
        raise fields.fail(
            dim_key, f"{dim} is no multiple of the {n_heads} heads, and {key} is missing"
        )
    return dim // n_heads


def _check_gguf_rope(fields: Fields, arch: str, head_dim: int) -> None:
    key = f"{arch}.rope.dimension_count"
    n_rotated = fields.whole(key, head_dim)
    if n_rotated % 2 or n_rotated > head_dim:
        raise fields.fail(key, f"is {n_rotated}; it must be even and at most {head_dim}")
    if n_rotated < head_dim:
        raise UnsupportedError(
            f"{fields.where}: {key} is {n_rotated} of {head_dim}: partial rotation is not supported"
        )
    scaling = fields.text(f"{arch}.rope.scaling.type", "none")
    factor = fields.number(f"{arch}.rope.scaling.factor", 1.0)
    linear = fields.number(f"{arch}.rope.scale_linear", 1.0)
    if scaling != "none" and not (scaling == "linear" and factor == 1.0):
        raise UnsupportedError(
            f"{fields.where}: {arch}.rope.scaling.type {shown(scaling)} is not supported"
        )
    if linear != 1.0:
        raise UnsupportedError(f"{fields.where}: {arch}.rope.scale_linear is not supported")


def _gguf_eos(fields: Fields, n_tokens: int, is_spm: bool) -> tuple[int, ...]:
    default = 2 if is_spm and n_tokens > 2 else None
    found = [fields.token_id("tokenizer.ggml.eos_token_id", n_tokens, default)]
    for name in ("eot", "eom"):
        found.append(fields.token_id(f"tokenizer.ggml.{name}_token_id", n_tokens))
    for name in ("padding", "unknown", "seperator", "separator"):
        fields.token_id(f"tokenizer.ggml.{name}_token_id", n_tokens)
    return tuple(dict.fromkeys(token_id for token_id in found if token_id is not None))


# ---- Hugging Face ----

_HF_REFUSED_FLAGS = ("attention_bias", "mlp_bias", "attention_out_bias")


def hf_config(
    config: Fields, generation: Fields | None, *, vocab_size: int, has_head: bool, name: str
) -> ModelConfig:
    """Translate config.json and, where there is one, generation_config.json.

    Units:   vocab_size rows of the embedding
    Raises:  ConfigError, UnsupportedError
    """
    _check_hf_kind(config)
    n_heads = config.whole("num_attention_heads")
    dim = config.whole("hidden_size")
    stated = config.whole("vocab_size")
    if stated != vocab_size:
        raise config.fail("vocab_size", f"is {stated}, but the embedding has {vocab_size} rows")
    eos = config.token_ids("eos_token_id", vocab_size)
    if generation is not None:
        eos += generation.token_ids("eos_token_id", vocab_size)
    return build(
        config.where, arch=config.text("model_type"), dim=dim, n_heads=n_heads,
        ffn_dim=config.whole("intermediate_size"),
        n_layers=config.whole("num_hidden_layers", high=4096),
        n_kv_heads=config.whole("num_key_value_heads", n_heads),
        head_dim=_head_dim(config, "head_dim", dim, n_heads, "hidden_size"),
        vocab_size=vocab_size,
        max_seq_len=config.whole("max_position_embeddings"),
        norm_eps=config.number("rms_norm_eps", high=1.0),
        rope_theta=_hf_rope_theta(config),
        rope_style="half",
        tied_head=_hf_tied(config, has_head),
        bos_token_id=config.token_id("bos_token_id", vocab_size),
        eos_token_ids=tuple(dict.fromkeys(eos)),
        name=name,
        generation=_generation_defaults(generation),
    )  # fmt: skip


def _check_hf_kind(config: Fields) -> None:
    names = config.values.get("architectures")
    if names is not None and names != ["LlamaForCausalLM"]:
        raise UnsupportedError(
            f"{config.where}: architectures {shown(names)} is not supported; "
            "['LlamaForCausalLM'] is"
        )
    require_arch(config.text("model_type"), config.where)
    for key in _HF_REFUSED_FLAGS:
        if config.flag(key, False):
            raise UnsupportedError(f"{config.where}: {key}: biases are not supported")
    if "quantization_config" in config:
        method = config.values["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else method
        raise UnsupportedError(
            f"{config.where}: quantization_config {shown(method)} is not supported"
        )
    activation = config.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedError(f"{config.where}: hidden_act {shown(activation)} is not supported")


def _hf_rope_theta(config: Fields) -> float:
    theta = config.number("rope_theta", 10000.0)
    for key in ("rope_scaling", "rope_parameters"):
        if key not in config:
            continue
        value = config.values[key]
        if not isinstance(value, dict):
            raise config.fail(key, f"must be an object, not {shown(value)}")
        rope = Fields(value, f"{config.where}: {key}")
        if not value:
            continue
        kind_key = "rope_type" if "rope_type" in rope or "type" not in rope else "type"
        kind = rope.text(kind_key)
        if kind != "default":
            raise UnsupportedError(
                f"{config.where}: {key} of the kind {shown(kind)} is not supported"
            )
        theta = rope.number("rope_theta", theta)
        _refuse_partial_rotation(rope)
    _refuse_partial_rotation(config)
    return theta


def _refuse_partial_rotation(fields: Fields) -> None:
    if fields.number("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedError(f"{fields.where}: partial_rotary_factor is not supported")


def _hf_tied(config: Fields, has_head: bool) -> bool:
    tied = config.flag("tie_word_embeddings", not has_head)
    if not tied and not has_head:
        raise config.fail(
            "tie_word_embeddings", "is false, but the tensor lm_head.weight is missing"
        )
    return tied


def _generation_defaults(generation: Fields | None) -> GenerationDefaults:
    """Sampling defaults of a model; out-of-range ones are refused with the file's name."""
    if generation is None:
        return GenerationDefaults()
    values = {
        name: generation.values.get(name)
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    }
    try:
        checked = SamplingParams(**values)
    except ConfigError as error:
        raise ConfigError(f"{generation.where}: {error}") from error
    return GenerationDefaults(
        temperature=checked.temperature, top_k=checked.top_k, top_p=checked.top_p,
        min_p=checked.min_p, repetition_penalty=checked.repetition_penalty,
    )  # fmt: skip


# ---- llama2.c ----


@dataclass(frozen=True, slots=True)
class Llama2cHeader:
    """The seven numbers of a llama2.c header and what its version adds.

    Units: start is the offset of the first array, in bytes
    """

    version: int
    dim: int
    ffn_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    shared_head: bool
    start: int
    group_size: int = 0


def llama2c_config(header: Llama2cHeader, where: str, name: str) -> ModelConfig:
    """Translate a llama2.c header. Raises ConfigError.

    Notes:   the files' own runner stops at 1 (BOS, which separates stories) as well as at 2
    """
    if header.dim % header.n_heads or header.n_heads % header.n_kv_heads:
        raise ConfigError(
            f"{where}: dim {header.dim}, n_heads {header.n_heads}, n_kv_heads {header.n_kv_heads} "
            "at offset 0: each must be a multiple of the next"
        )
    return build(
        where, arch="llama", dim=header.dim, ffn_dim=header.ffn_dim, n_layers=header.n_layers,
        n_heads=header.n_heads, n_kv_heads=header.n_kv_heads,
        head_dim=header.dim // header.n_heads, vocab_size=header.vocab_size,
        max_seq_len=header.seq_len, norm_eps=1e-5, rope_theta=10000.0, rope_style="interleaved",
        tied_head=header.shared_head, bos_token_id=1 if header.vocab_size > 1 else None,
        eos_token_ids=tuple(i for i in (1, 2) if i < header.vocab_size), add_bos=True, name=name,
    )  # fmt: skip
