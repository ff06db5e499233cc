"""From GGUF keys, and the tensors that are numbers too: how queries and keys turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from rllama.config import RopeScaling
from rllama.errors import UnsupportedError
from rllama.formats.fields import Fields, shown
from rllama.formats.gguf_families import GgufFamily
from rllama.formats.names import GGUF_ROPE_FACTORS

Factors = Mapping[str, tuple[float, ...]]


def rope_numbers(
    fields: Fields,
    arch: str,
    family: GgufFamily,
    head_dim: int,
    factors: Factors,
    *,
    has_windows: bool,
) -> dict[str, Any]:
    """The fields of ModelConfig that the rotation takes.

    Notes:   factors are the values of the tensors in GGUF_ROPE_FACTORS that are there
    Raises:  ConfigError, UnsupportedError
    """
    key = f"{arch}.rope.".__add__
    n_rotated = _n_rotated(fields, key("dimension_count"), head_dim)
    if not fields.flag(key("scaling.finetuned"), True) and family.turns_if_finetuned:
        raise UnsupportedError(f"{fields.where}: {key('scaling.finetuned')}: without any rotation")
    trained = fields.whole(f"{arch}.context_length")
    theta = fields.number(key("freq_base"), 10000.0)
    scaling = _scaling(fields, arch, trained, n_rotated, factors)
    if scaling is not None and not family.truncates_yarn:
        scaling = replace(scaling, truncate=False)
    numbers: dict[str, Any] = {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "n_rotated": 0 if n_rotated == head_dim else n_rotated,
        "max_seq_len": _context(fields, arch, trained, scaling),
    }
    if has_windows and family.local_theta is not None:
        base = family.local_theta or theta
        numbers["local_rope_theta"] = fields.number(key("freq_base_swa"), base)
    return numbers


def _n_rotated(fields: Fields, key: str, head_dim: int) -> int:
    n_rotated = fields.whole(key, head_dim)
    if n_rotated % 2 or n_rotated > head_dim:
        raise fields.fail(key, f"is {n_rotated}; it must be even and at most {head_dim}")
    return n_rotated


def _scaling(
    fields: Fields, arch: str, trained: int, n_rotated: int, factors: Factors
) -> RopeScaling | None:
    key = f"{arch}.rope.scaling.".__add__
    kind = fields.text(key("type"), "none")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise UnsupportedError(f"{fields.where}: {key('type')} {shown(kind)} is not supported")
    grows = f"{arch}.attention.temperature_scale"
    if kind != "yarn" and fields.number_or(0.0, grows):
        raise UnsupportedError(f"{fields.where}: {grows} is not supported without yarn")
    factor = fields.number(key("factor"), 1.0)
    early = f"{arch}.rope.scale_linear"
    if key("type") not in fields and early in fields:
        kind, factor = "linear", fields.number(early)
    original = fields.whole(key("original_context_length"), trained)
    if factors:
        if kind == "yarn" or (kind == "linear" and factor != 1.0):
            raise UnsupportedError(
                f"{fields.where}: {key('type')} {shown(kind)} together with the tensor "
                f"{next(iter(factors))} is not supported"
            )
        return _by_pair(fields, key("attn_factor"), original, n_rotated, factors)
    if kind == "yarn":
        return _yarn(fields, key, factor, original, fields.number_or(0.0, grows))
    if kind == "linear" and factor != 1.0:
        return RopeScaling("linear", factor)
    if kind == "longrope":
        raise fields.fail(key("type"), "is longrope, but the tensors of its factors are missing")
    return None


def _by_pair(
    fields: Fields, attn_key: str, original: int, n_rotated: int, factors: Factors
) -> RopeScaling:
    """A factor for each pair: one list for every context, or a short and a long one."""
    always, short, long = (factors.get(name) for name in GGUF_ROPE_FACTORS)
    for name, values in factors.items():
        if len(values) != n_rotated // 2 or not all(0 < v < math.inf for v in values):
            raise fields.fail(f"tensor {name}", f"must have {n_rotated // 2} values above zero")
    if (short is None) != (long is None):
        raise fields.fail(f"tensor {next(iter(factors))}", "has no partner, short or long")
    if always is None:
        always, last = short, long
    else:
        last = always
    assert always is not None
    assert last is not None
    return RopeScaling(
        "longrope", 1.0, original, attn_factor=fields.number(attn_key, 1.0),
        short_factors=always, long_factors=last,
    )  # fmt: skip


def _yarn(
    fields: Fields, key: Callable[[str], str], factor: float, original: int, query_growth: float
) -> RopeScaling:
    """The factor of the file multiplies what the kind computes; a log multiplier damps that."""
    growth = 1.0 + 0.1 * math.log(max(factor, 1.0))
    damping = fields.number_or(0.0, key("yarn_log_multiplier"))
    if damping:
        growth /= 1.0 + 0.1 * damping * math.log(max(factor, 1.0))
    if fields.number_or(1.0, key("yarn_ext_factor")) != 1.0:
        raise UnsupportedError(f"{fields.where}: {key('yarn_ext_factor')} is not supported")
    return RopeScaling(
        "yarn", factor, original,
        beta_fast=fields.number_or(32.0, key("yarn_beta_fast")),
        beta_slow=fields.number_or(1.0, key("yarn_beta_slow")),
        attn_factor=growth * fields.number_or(1.0, key("attn_factor")), query_growth=query_growth,
    )  # fmt: skip


def _context(fields: Fields, arch: str, trained: int, scaling: RopeScaling | None) -> int:
    """How many positions the model is good for."""
    if scaling is None or scaling.kind != "yarn":
        return trained
    return int(max(trained, min(scaling.factor * scaling.original_max_seq_len, 2**31 - 1)))
