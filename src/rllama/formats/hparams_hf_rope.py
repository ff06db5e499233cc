"""From config.json: how queries and keys turn, in the old spellings and the new one."""

from __future__ import annotations

import math
from typing import Any

from rllama.config import RopeScaling
from rllama.errors import UnsupportedError
from rllama.formats.fields import Fields, shown

_KINDS = ("linear", "dynamic", "yarn", "llama3", "longrope")
_LAYER_KINDS = ("full_attention", "sliding_attention")
_GROWTH = "llama_4_scaling_beta"
# What changes rotations in ways that are not computed here.
_REFUSED = ("mrope_section", "mrope_interleaved", "alpha")


def rope_numbers(config: Fields, head_dim: int) -> dict[str, Any]:
    """The fields of ModelConfig that the rotation takes. Raises ConfigError, UnsupportedError."""
    trained = _trained(config)
    everywhere, local = _tables(config)
    n_rotated = int(head_dim * _partial(config, everywhere))
    if n_rotated % 2 or not n_rotated:
        raise config.fail("partial_rotary_factor", f"leaves {n_rotated} of {head_dim}, not pairs")
    scaling = None if everywhere is None else _scaling(config, everywhere, trained, n_rotated)
    theta = config.number("rope_theta", 10000.0)
    numbers: dict[str, Any] = {
        "rope_theta": theta if everywhere is None else everywhere.number("rope_theta", theta),
        "rope_scaling": scaling,
        "n_rotated": 0 if n_rotated == head_dim else n_rotated,
        "max_seq_len": _context(config, trained, scaling, everywhere),
    }
    if local is not None or "rope_local_base_freq" in config:
        numbers["local_rope_theta"] = _local_theta(config, local, theta)
    return numbers


def _trained(config: Fields) -> int:
    """The context of the training; the second name stands beside the first in early files."""
    both = [key for key in ("max_position_embeddings", "max_sequence_length") if key in config]
    return max(config.whole(key) for key in both or ["max_position_embeddings"])


def _tables(config: Fields) -> tuple[Fields | None, Fields | None]:
    """The object that tells of the rotation, and that of the layers with a window.

    Notes:   `rope_scaling` is the older name and wins, as it does in transformers; objects within
             `rope_parameters` have the name of the kind of layer that they are for
    """
    found: list[Fields | None] = [None, None]
    for key in ("rope_parameters", "rope_scaling"):
        value = config.values.get(key)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise config.fail(key, f"must be an object, not {shown(value)}")
        where = f"{config.where}: {key}"
        if not any(kind in value for kind in _LAYER_KINDS):
            found[0] = Fields(value, where) if value else found[0]
            continue
        for i, kind in enumerate(_LAYER_KINDS):
            inner = value.get(kind)
            if isinstance(inner, dict):
                found[i] = Fields(inner, f"{where}: {kind}")
            elif inner is not None:
                raise config.fail(key, f"has {kind} {shown(inner)}; an object is wanted")
    return found[0], found[1]


def _partial(config: Fields, rope: Fields | None) -> float:
    part = config.number("partial_rotary_factor", 1.0, high=1.0000001)
    return part if rope is None else rope.number("partial_rotary_factor", part, high=1.0000001)


def _kind(rope: Fields) -> str:
    if "rope_type" not in rope and "type" not in rope and "factor" in rope:
        raise rope.fail("rope_type", "is missing")
    kind = rope.text("rope_type") if "rope_type" in rope else rope.text("type", "default")
    if kind == "su" or (kind == "yarn" and "long_factor" in rope):
        return "longrope"  # as it was called in early files
    if kind not in (*_KINDS, "default"):
        raise UnsupportedError(f"{rope.where} of the kind {shown(kind)} is not supported")
    return kind


def _scaling(config: Fields, rope: Fields, trained: int, n_rotated: int) -> RopeScaling | None:
    for key in _REFUSED:
        if key in rope:
            raise UnsupportedError(f"{rope.where}: {key} is not supported")
    kind = _kind(rope)
    if kind != "yarn" and rope.number_or(0.0, _GROWTH):
        raise UnsupportedError(f"{rope.where}: {_GROWTH} is not supported without yarn")
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", rope.number("factor"))
    if kind == "dynamic":
        return RopeScaling("dynamic", rope.number("factor"), trained)
    outer = config.whole("original_max_position_embeddings", 0, low=0)
    original = outer or rope.whole("original_max_position_embeddings", trained)
    if kind == "llama3":
        return _llama3(rope, original)
    if kind == "yarn":
        return _yarn(rope, original, trained)
    return _longrope(rope, original, trained, n_rotated)


def _llama3(rope: Fields, original: int) -> RopeScaling:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if low >= high:
        raise rope.fail("low_freq_factor", f"is {low:g}, not below high_freq_factor {high:g}")
    return RopeScaling(
        "llama3", rope.number("factor"), original, low_freq_factor=low, high_freq_factor=high
    )


def _yarn(rope: Fields, original: int, trained: int) -> RopeScaling:
    return RopeScaling(
        "yarn", rope.number("factor", trained / original), original,
        beta_fast=rope.number_or(32.0, "beta_fast"), beta_slow=rope.number_or(1.0, "beta_slow"),
        truncate=rope.flag("truncate", True), attn_factor=_attn_factor(rope),
        mscale=rope.number_or(0.0, "mscale"), mscale_all_dim=rope.number_or(0.0, "mscale_all_dim"),
        query_growth=rope.number_or(0.0, _GROWTH),
    )  # fmt: skip


def _longrope(rope: Fields, original: int, trained: int, n_rotated: int) -> RopeScaling:
    return RopeScaling(
        "longrope", rope.number("factor", trained / original), original,
        attn_factor=_attn_factor(rope), short_factors=_factors(rope, "short_factor", n_rotated),
        long_factors=_factors(rope, "long_factor", n_rotated),
    )  # fmt: skip


def _attn_factor(rope: Fields) -> float | None:
    return rope.number("attention_factor") if "attention_factor" in rope else None


def _factors(rope: Fields, key: str, n_rotated: int) -> tuple[float, ...]:
    values = rope.values.get(key)
    if not isinstance(values, list) or len(values) != n_rotated // 2:
        raise rope.fail(key, f"must be a list of {n_rotated // 2} numbers")
    each = (Fields({key: value}, rope.where).number(key) for value in values)
    return tuple(each)


def _context(config: Fields, trained: int, scaling: RopeScaling | None, rope: Fields | None) -> int:
    """How many positions the model is good for."""
    if scaling is None or rope is None:
        return trained
    if scaling.kind == "dynamic":
        stretched = scaling.factor * trained
    elif scaling.kind == "yarn":
        stretched = max(trained, scaling.factor * scaling.original_max_seq_len)
    else:
        stretched = trained
    return int(min(math.floor(stretched), 2**31 - 1))


def _local_theta(config: Fields, local: Fields | None, theta: float) -> float:
    base = config.number("rope_local_base_freq", theta)
    if local is None:
        return base
    if _kind(local) != "default" or local.number("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedError(
            f"{local.where}: a scaled or partial rotation of the layers with a window is not "
            "supported"
        )
    return local.number("rope_theta", base)
