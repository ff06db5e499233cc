"""From config.json: which positions a layer sees, which layers turn, how scores are scaled."""

from __future__ import annotations

import math
from typing import Any

from rllama.errors import UnsupportedError
from rllama.formats.fields import Fields, shown
from rllama.formats.hf_families import HfFamily
from rllama.formats.hparams import wide_layers

_LAYER_TYPES = ("full_attention", "sliding_attention")


def attention_numbers(config: Fields, family: HfFamily, n_layers: int) -> dict[str, Any]:
    """The fields of ModelConfig that attention takes. Raises ConfigError, UnsupportedError."""
    windows = _windows(config, n_layers)
    unrotated = _unrotated(config, n_layers)
    if not family.turns_wide_layers:
        unrotated = wide_layers(windows)
    return {
        "windows": windows,
        "unrotated_layers": unrotated,
        "attn_scale": _scale(config),
        "attn_softcap": config.number_or(0.0, "attn_logit_softcapping"),
        "logit_softcap": config.number_or(0.0, "final_logit_softcapping"),
    }


def _windows(config: Fields, n_layers: int) -> tuple[int, ...]:
    """How far each layer sees; nothing where all see everything."""
    kinds = _layer_types(config, n_layers)
    if "sliding_window" not in config or not config.flag("use_sliding_window", True):
        return ()
    window = config.whole("sliding_window")
    if kinds:
        narrow = [kind == "sliding_attention" for kind in kinds]
    elif "max_window_layers" in config:
        first = config.whole("max_window_layers", low=0)
        narrow = [i >= first for i in range(n_layers)]
    else:
        every = config.whole("sliding_window_pattern", 0, low=0)
        narrow = [every == 0 or (i + 1) % every != 0 for i in range(n_layers)]
    return tuple(window if is_narrow else 0 for is_narrow in narrow) if any(narrow) else ()


def _layer_types(config: Fields, n_layers: int) -> list[Any]:
    kinds = config.values.get("layer_types")
    if kinds is None:
        return []
    if not isinstance(kinds, list) or len(kinds) != n_layers:
        raise config.fail("layer_types", f"must name the kind of each of the {n_layers} layers")
    for kind in kinds:
        if kind not in _LAYER_TYPES:
            raise UnsupportedError(
                f"{config.where}: layer_types has {shown(kind)}; only {' and '.join(_LAYER_TYPES)} "
                "are supported"
            )
    return kinds


def _unrotated(config: Fields, n_layers: int) -> tuple[int, ...]:
    turns = config.values.get("no_rope_layers")  # a misnomer: 1 is a layer that turns
    if turns is None or turns == []:
        every = config.whole("no_rope_layer_interval", 0, low=0)
        return tuple(i for i in range(n_layers) if every and (i + 1) % every == 0)
    if not isinstance(turns, list) or len(turns) < n_layers or any(t not in (0, 1) for t in turns):
        raise config.fail("no_rope_layers", f"must be 0 or 1 for each of the {n_layers} layers")
    return tuple(i for i in range(n_layers) if not turns[i])


def _scale(config: Fields) -> float | None:
    """What scores are multiplied by; None: by one over the root of the head's width."""
    if "attention_multiplier" in config:
        return config.number("attention_multiplier")
    if "query_pre_attn_scalar" in config:
        return 1 / math.sqrt(config.number("query_pre_attn_scalar"))
    return None
