"""From config.json and generation_config.json to a ModelConfig."""

from __future__ import annotations

from rllama.config import GenerationDefaults, ModelConfig, SamplingParams
from rllama.errors import ConfigError, UnsupportedError
from rllama.formats.fields import Fields, shown
from rllama.formats.hparams import FindArch, build, head_dim_of, require_arch

_HF_REFUSED_FLAGS = ("attention_bias", "mlp_bias", "attention_out_bias")


def hf_config(
    config: Fields,
    generation: Fields | None,
    *,
    vocab_size: int,
    has_head: bool,
    name: str,
    find_arch: FindArch | None = None,
) -> ModelConfig:
    """Translate config.json and, where there is one, generation_config.json.

    Units:   vocab_size rows of the embedding
    Raises:  ConfigError, UnsupportedError
    """
    arch = _hf_arch(config, find_arch)
    _refuse_hf_variants(config)
    n_heads = config.whole("num_attention_heads")
    dim = config.whole("hidden_size")
    stated = config.whole("vocab_size")
    if stated != vocab_size:
        raise config.fail("vocab_size", f"is {stated}, but the embedding has {vocab_size} rows")
    eos = config.token_ids("eos_token_id", vocab_size)
    if generation is not None:
        eos += generation.token_ids("eos_token_id", vocab_size)
    return build(
        config.where, arch=arch, dim=dim, n_heads=n_heads,
        ffn_dim=config.whole("intermediate_size"),
        n_layers=config.whole("num_hidden_layers", high=4096),
        n_kv_heads=config.whole("num_key_value_heads", n_heads),
        head_dim=head_dim_of(config, "head_dim", dim, n_heads, "hidden_size"),
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


def _hf_arch(config: Fields, find_arch: FindArch | None) -> str:
    """The model type, whose decoder must be what `architectures` names if that is given."""
    arch = config.text("model_type")
    require_arch(arch, find_arch, config.where)
    names = config.values.get("architectures")
    wanted = arch.replace("_", "") + "forcausallm"
    if names is not None and not (
        isinstance(names, list) and [str(name).lower() for name in names] == [wanted]
    ):
        raise UnsupportedError(
            f"{config.where}: architectures {shown(names)} with model_type {shown(arch)} is not "
            "supported; only a causal decoder of that type is"
        )
    return arch


def _refuse_hf_variants(config: Fields) -> None:
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
