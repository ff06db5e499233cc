"""Quantising while loading: what `--quantize` asks for, and the tensors that it applies to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from rllama.dtypes import BF16, F16, F32, DType
from rllama.errors import ConfigError, UnsupportedError
from rllama.formats.fields import Fields, shown
from rllama.formats.files import is_file, printable
from rllama.formats.json_file import CONFIG_LIMIT_BYTES, parse_json, read_json
from rllama.packed import PackedView
from rllama.recipe import Recipe
from rllama.tensor import RecastView, View

log = logging.getLogger(__name__)

Part = Literal["embed", "head", "linear"]


@dataclass(frozen=True, slots=True)
class Recipes:
    """A recipe for each part of a model, None where it stays as it is stored.

    Notes: f16 holds what stays float in 16 bits
    """

    name: str
    linear: Recipe | None = None
    head: Recipe | None = None
    embed: Recipe | None = None
    f16: bool = False


_Q8_0 = Recipe("q8_0")
_INT8, _INT4, _A8W4 = Recipe("symmetric_8"), Recipe("asymmetric_4", 128), Recipe("symmetric_4", 256)
# Head and embedding of the 4-bit types of ggml stay finer, as is the habit there.
KINDS: dict[str, Recipes] = {
    "q8_0": Recipes("q8_0", _Q8_0, _Q8_0, _Q8_0),
    "q4_0": Recipes("q4_0", Recipe("q4_0"), _Q8_0, _Q8_0),
    "q4_k": Recipes("q4_k", Recipe("q4_k"), _Q8_0, _Q8_0),
    "int8": Recipes("int8", _INT8, _INT8),
    "int4": Recipes("int4", _INT4, _INT4),
    "8da4w": Recipes("8da4w", _A8W4, _A8W4),
}
_PRECISIONS: dict[str, DType | None] = {
    "fp32": F32, "float32": F32, "fp16": F16, "float16": F16, "bf16": BF16, "bfloat16": BF16,
    "fast": None, "fast16": F16,
}  # fmt: skip


def read_recipes(text: str) -> Recipes:
    """What a value of `--quantize` means: a kind, torchchat's JSON, or a file with it.

    Raises:  ConfigError, UnsupportedError
    """
    if text.lower() in KINDS:
        return KINDS[text.lower()]
    if text.lstrip().startswith("{"):
        return _from_json(parse_json(text.encode(), "--quantize", ConfigError), "--quantize")
    if is_file(text):
        return _from_json(read_json(text, ConfigError, CONFIG_LIMIT_BYTES), printable(text))
    raise ConfigError(
        f"quantize {ascii(text)[:80]} is neither a kind ({', '.join(KINDS)}) nor a JSON object nor "
        "a file with one"
    )


def _from_json(values: dict[str, Any], where: str) -> Recipes:
    recipes = Recipes("JSON")
    for key, value in values.items():
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {ascii(key)[:60]} must be an object, not {shown(value)}")
        fields = Fields(value, f"{where}: {key}")
        if key == "precision":
            recipes = _with_precision(recipes, fields)
        elif key == "executor":
            _check_executor(fields)
        elif key == "embedding":
            recipes = replace(recipes, embed=_symmetric(fields))
        elif key.startswith("linear:"):
            recipes = _with_linear(recipes, key, fields)
        else:
            raise UnsupportedError(
                f"{where}: {ascii(key)[:60]} is not supported; linear:int8, linear:int4, "
                "linear:a8w4dq, embedding, precision and executor are"
            )
    return recipes


def _with_linear(recipes: Recipes, key: str, fields: Fields) -> Recipes:
    if key == "linear:int8":
        recipe = _symmetric(fields, "node_type")
    elif key == "linear:int4":
        _only(fields, "groupsize")
        size = fields.whole("groupsize")
        if size not in (32, 64, 128, 256):
            raise fields.fail("groupsize", f"is {size}; 32, 64, 128 and 256 are possible")
        recipe = Recipe("asymmetric_4", size)
    elif key == "linear:a8w4dq":
        _only(fields, "groupsize")
        recipe = Recipe("symmetric_4", _group(fields, 256))
    else:
        raise UnsupportedError(
            f"{fields.where} is not supported; linear:int8, linear:int4 and linear:a8w4dq are"
        )
    chosen = fields.text("node_type", "*")
    if chosen not in ("*", "output", "!output"):
        raise fields.fail("node_type", f"is {shown(chosen)}; *, output and !output are possible")
    if chosen != "output":
        recipes = replace(recipes, linear=recipe)
    return recipes if chosen == "!output" else replace(recipes, head=recipe)


def _symmetric(fields: Fields, *more: str) -> Recipe:
    _only(fields, "bitwidth", "groupsize", *more)
    bits = fields.whole("bitwidth", 8)
    if bits not in (4, 8):
        raise UnsupportedError(f"{fields.where}: {bits} bits are not supported; 4 and 8 are")
    return Recipe("symmetric_8" if bits == 8 else "symmetric_4", _group(fields, 0))


def _group(fields: Fields, default: int) -> int:
    """Columns under one scale; 0, or the word that torchchat has for it, is the whole row."""
    size = fields.whole("groupsize", default, low=0)
    if size % 32:
        raise UnsupportedError(f"{fields.where}: groupsize {size} is no multiple of 32")
    return size


def _with_precision(recipes: Recipes, fields: Fields) -> Recipes:
    """The type of what stays float: F16 is converted to, others stay as stored."""
    _only(fields, "dtype")
    name = fields.text("dtype")
    if name not in _PRECISIONS:
        raise fields.fail("dtype", f"is {shown(name)}; known: {', '.join(_PRECISIONS)}")
    return replace(recipes, f16=_PRECISIONS[name] is F16)


def _check_executor(fields: Fields) -> None:
    _only(fields, "accelerator")
    name = fields.text("accelerator", "cpu")
    if name not in ("cpu", "fast"):
        raise UnsupportedError(f"{fields.where}: {shown(name)} is not supported; cpu is")


def _only(fields: Fields, *known: str) -> None:
    for key in fields.values:
        if key not in known:
            raise fields.fail(ascii(key)[:60], f"is not known; {', '.join(known)} are")


def recast(tensors: Mapping[str, View], recipes: Recipes, where: str) -> dict[str, View]:
    """The tensors with those that the recipes are for marked to be quantised when placed.

    Notes:   rows that are no multiple of 256 take Q8_0 instead of Q4_K, rows that are none of 32
             stay float; vectors and routers of experts do in any case
    Raises:  ConfigError for a checkpoint that is quantised already
    """
    for view in tensors.values():
        if len(view.shape) > 1 and (isinstance(view, PackedView) or not view.dtype.is_float):
            raise ConfigError(
                f"{view.origin}: {where} is quantised already ({view.dtype.name}); --quantize is "
                "for checkpoints of floats"
            )
    result = dict(tensors)
    floats = finer = 0
    for name, view in tensors.items():
        recipe = _recipe_for(name, view, recipes)
        if recipe is None or isinstance(view, PackedView | RecastView):
            continue
        n_cols = view.shape[-1]
        if not recipe.fits(n_cols):
            if recipe.kind != "q4_k" or not _Q8_0.fits(n_cols):
                floats += 1
                continue
            recipe, finer = _Q8_0, finer + 1
        result[name] = RecastView(view, recipe)
    if floats or finer:
        log.warning(
            "%s: of %d tensors to be quantised to %s, %d have rows that are no multiple of 32 and "
            "stay float, %d have rows that are none of 256 and become Q8_0",
            where, len(tensors), recipes.name, floats, finer,
        )  # fmt: skip
    return result


def _recipe_for(name: str, view: View, recipes: Recipes) -> Recipe | None:
    if len(view.shape) != 2 or name.endswith("router"):
        return None
    if name == "embed":
        return recipes.embed
    return recipes.head if name == "lm_head" else recipes.linear
