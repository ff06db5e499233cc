"""JSON from strangers: no NaN, no infinity, no duplicate keys, no bombs."""

from __future__ import annotations

import json
import math
from typing import Any

from rllama.errors import RllamaError
from rllama.formats.fields import Fields
from rllama.formats.files import printable, read_small

CONFIG_LIMIT_BYTES = 1 << 20
SETTINGS_LIMIT_BYTES = 16 << 20  # tokenizer_config.json lists added tokens and templates
INDEX_LIMIT_BYTES = 64 << 20


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twin = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {ascii(twin)[:80]} occurs twice")
    for key in found:
        if "\x00" in key or not key.isascii():
            key.encode("utf-8")  # a lone surrogate fails here
            if "\x00" in key:
                raise ValueError(f"the key {ascii(key)[:80]} holds a NUL")
    return found


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


def _int(text: str) -> int:
    if len(text) > 40:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def parse_json(data: bytes, where: str, error: type[RllamaError]) -> dict[str, Any]:
    """The object that `data` spells. Raises `error`, with one line that says why not."""
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_pairs, parse_constant=_constant,
            parse_float=_float, parse_int=_int,
        )  # fmt: skip
    except RecursionError:
        raise error(f"{where}: nested too deeply") from None
    except ValueError as problem:
        raise error(f"{where}: not a legal JSON text: {problem}") from None
    if not isinstance(value, dict):
        raise error(f"{where}: a JSON object is wanted, not {type(value).__name__}")
    return value


def read_json(path: str, error: type[RllamaError], limit_bytes: int) -> dict[str, Any]:
    """The object in a JSON file. Raises `error`, and ConfigError if the file cannot be opened."""
    try:
        data = read_small(path, limit_bytes)
    except RllamaError as problem:
        raise error(str(problem)) from problem
    return parse_json(data, printable(path), error)


def read_fields(
    path: str, error: type[RllamaError], limit_bytes: int = CONFIG_LIMIT_BYTES
) -> Fields:
    """The object in a small JSON file, for reading its fields one by one."""
    return Fields(read_json(path, error, limit_bytes), printable(path))
