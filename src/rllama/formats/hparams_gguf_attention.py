"""From GGUF keys: which positions a layer sees, which layers turn, how scores are scaled."""

from __future__ import annotations

import math
from typing import Any

from rllama.formats.fields import Fields
from rllama.formats.gguf_families import GgufFamily
from rllama.formats.gguf_header import GgufArray
from rllama.formats.hparams import wide_layers


def attention_numbers(
    fields: Fields, arch: str, family: GgufFamily, n_layers: int, head_width: int
) -> dict[str, Any]:
    """The fields of ModelConfig that attention takes. Raises ConfigError.

    Units: head_width dim / n_heads
    """
    every = family.unrotated_every
    windows = _windows(fields, arch, family, n_layers)
    unrotated = tuple(i for i in range(n_layers) if every and (i + 1) % every == 0)
    return {
        "windows": windows,
        "unrotated_layers": unrotated if family.turns_wide_layers else wide_layers(windows),
        "attn_scale": _scale(fields, arch, family, n_layers, head_width),
        "attn_softcap": fields.number_or(0.0, f"{arch}.attn_logit_softcapping"),
        "logit_softcap": fields.number_or(0.0, f"{arch}.final_logit_softcapping"),
    }


def _scale(
    fields: Fields, arch: str, family: GgufFamily, n_layers: int, head_width: int
) -> float | None:
    """What scores are multiplied by; None: by one over the root of the head's width."""
    stated = fields.number_or(0.0, f"{arch}.attention.scale")
    if stated:
        return stated
    return 1 / math.sqrt(head_width) if n_layers in family.wide_scale else None


def _windows(fields: Fields, arch: str, family: GgufFamily, n_layers: int) -> tuple[int, ...]:
    window = fields.whole(f"{arch}.attention.sliding_window", family.window, low=0)
    if not window or not family.has_windows:
        return ()
    narrow = _narrow(fields, f"{arch}.attention.sliding_window_pattern", family, n_layers)
    return tuple(window if is_narrow else 0 for is_narrow in narrow) if any(narrow) else ()


def _narrow(fields: Fields, key: str, family: GgufFamily, n_layers: int) -> list[bool]:
    """Which layers have the window: a flag for each, or all but every nth."""
    value = fields.values.get(key)
    if not isinstance(value, GgufArray):
        every = fields.whole(key, family.window_every, low=0)
        return [every == 0 or (i + 1) % every != 0 for i in range(n_layers)]
    if value.numbers is None or value.count != n_layers:
        raise fields.fail(key, f"is an {value}; a flag for each of the {n_layers} layers is wanted")
    return [bool(flag) for flag in value.numbers]
