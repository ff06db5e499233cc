"""From params.json, or the arguments inside a training checkpoint, to a ModelConfig."""

from __future__ import annotations

from typing import Any

from rllama.config import ModelConfig, RopeScaling
from rllama.errors import ConfigError, UnsupportedError
from rllama.formats.fields import Fields, shown
from rllama.formats.hparams import build, head_dim_of

# What stands in params.json beside the numbers that are used: derived, or of training alone.
_IGNORED = ("multiple_of", "ffn_dim_multiplier", "max_batch_size", "dropout", "bias")
_USED = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "norm_eps",
         "rope_theta", "use_scaled_rope", "rope_scaling_factor", "max_seq_len")  # fmt: skip
_REFUSED = {
    "moe": "mixtures of experts in this layout", "lora_args": "low-rank adapters",
    "quantization_args": "Meta's own quantised checkpoints", "sliding_window": "sliding windows",
    "vision_chunk_size": "models that also see", "qk_norm": "norms of queries and keys",
}  # fmt: skip
# The names of config.json, for folders where somebody translated the numbers.
_FROM_HF = {
    "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads", "rms_norm_eps": "norm_eps",
    "max_position_embeddings": "max_seq_len",
}  # fmt: skip
_HF_REFUSED = ("rope_scaling", "rope_parameters", "quantization_config")
# Llama 3.2's text models by width and layers: trained with factor 32, which params.json leaves out.
_FACTOR_32 = ((2048, 16), (3072, 28))


def meta_fields(raw: Fields) -> Fields:
    """The same numbers under Meta's names, where config.json's were used.

    Raises:  ConfigError if a number stands twice, UnsupportedError for what would be lost
    """
    if "hidden_size" not in raw:
        return raw
    for key in _HF_REFUSED:
        if raw.values.get(key):
            raise UnsupportedError(
                f"{raw.where}: {key} with weights in Meta's layout is not supported"
            )
    values = dict(raw.values)
    for theirs, ours in _FROM_HF.items():
        if theirs in values and ours in values:
            raise raw.fail(theirs, f"and {ours} are both here")
        if theirs in values:
            values[ours] = values.pop(theirs)
    return Fields(values, raw.where)


def meta_config(
    fields: Fields,
    *,
    vocab_size: int,
    ffn_dim: int,
    tied_head: bool,
    is_first_llama: bool,
    name: str,
) -> ModelConfig:
    """Translate params.json.

    Units:   vocab_size rows of the embedding, ffn_dim rows of w1: the file has neither for sure
    Raises:  ConfigError, UnsupportedError
    """
    for key, words in _REFUSED.items():
        if fields.values.get(key):
            raise UnsupportedError(f"{fields.where}: {key}: {words} are not supported")
    _check_derived(fields)
    dim, n_heads = fields.whole("dim"), fields.whole("n_heads")
    n_layers = fields.whole("n_layers", high=4096)
    stated = fields.values.get("vocab_size", -1)
    if stated != -1 and fields.whole("vocab_size") != vocab_size:
        raise fields.fail("vocab_size", f"is {stated}, but the embedding has {vocab_size} rows")
    return build(
        fields.where, arch="llama", dim=dim, ffn_dim=ffn_dim, n_layers=n_layers, n_heads=n_heads,
        n_kv_heads=fields.whole("n_kv_heads", n_heads),
        head_dim=head_dim_of(fields, "head_dim", dim, n_heads, "dim"),
        vocab_size=vocab_size, rope_style="interleaved",
        norm_eps=fields.number("norm_eps", 1e-5, high=1.0), tied_head=tied_head, name=name,
        **_context(fields, dim, n_layers, is_first_llama=is_first_llama),
    )  # fmt: skip


def unknown_keys(fields: Fields) -> list[str]:
    """Keys that are neither used nor known to mean nothing here."""
    return [key for key in fields.values if key not in (*_USED, *_IGNORED)]


def _check_derived(fields: Fields) -> None:
    """The numbers that w1's height follows from must at least be numbers."""
    fields.whole("multiple_of", 256)
    fields.number("ffn_dim_multiplier", 1.0, high=1e6)


def _context(fields: Fields, dim: int, n_layers: int, *, is_first_llama: bool) -> dict[str, Any]:
    """Rotation and trained context; the latter is not stored, so its family's is taken.

    Notes:   use_scaled_rope: Llama 3.1 and later, 131072; theta 1e6: Code Llama, 16384;
             theta 5e5: Llama 3, 8192; else 2048 for the first LLaMA, whose files have tables of
             rotations in every layer or a norm_eps of 1e-6, and 4096 for Llama 2
    """
    theta, eps = fields.number("rope_theta", 10000.0), fields.number("norm_eps", 1e-5)
    scaling = None
    if fields.flag("use_scaled_rope", False):
        usual = 32.0 if (dim, n_layers) in _FACTOR_32 else 8.0
        factor = fields.number("rope_scaling_factor", usual)
        scaling = RopeScaling("llama3", factor, 8192, low_freq_factor=1.0, high_freq_factor=4.0)
        trained = 131072
    elif theta >= 1e6:
        trained = 16384
    elif theta >= 5e5:
        trained = 8192
    else:
        trained = 2048 if is_first_llama or eps < 5e-6 else 4096
    stated = fields.whole("max_seq_len", trained)
    return {"rope_theta": theta, "rope_scaling": scaling, "max_seq_len": stated}


def require_numbers(fields: Fields) -> None:
    """Raises ConfigError where this is no params.json at all."""
    if "dim" not in fields and "n_layers" not in fields:
        keys = ", ".join(shown(key) for key in list(fields.values)[:4]) or "nothing"
        raise ConfigError(f"{fields.where}: no numbers of a model; dim is wanted, {keys} is there")
