"""What is in a model file: numbers, tensors, types, sizes, tokenizer."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rllama import tokenizers
from rllama.errors import RllamaError
from rllama.formats.checkpoint import Checkpoint, Extra
from rllama.loader import StrPath, model_tensors, open_model
from rllama.tensor import View


def inspect_file(
    path: StrPath | None,
    *,
    param_path: StrPath | None = None,
    tokenizer_path: StrPath | None = None,
) -> dict[str, Any]:
    """Everything that the file says, as plain data that JSON can hold.

    Notes:   path None is the embedded model; opens what can be listed even if it cannot run: a
             vocabulary alone, unknown types
    Raises:  FormatError, ConfigError, UnsupportedError
    """
    checkpoint = open_model(
        path, param_path=param_path, tokenizer_path=tokenizer_path, lenient=True
    )
    try:
        return _report(checkpoint)
    finally:
        checkpoint.close()


def _report(checkpoint: Checkpoint) -> dict[str, Any]:
    tensors = [_tensor(name, view) for name, view in checkpoint.tensors.items()]
    tensors += [_extra(extra) for extra in checkpoint.extras]
    report = {
        "path": os.fspath(checkpoint.path),
        "format": checkpoint.format_name,
        "problem": _problem(checkpoint),
        "config": None if checkpoint.config is None else _config(asdict(checkpoint.config)),
        "tokenizer": _tokenizer(checkpoint),
        "types": _types(tensors),
        "total": {
            "tensors": len(tensors),
            "bytes": sum(tensor["bytes"] for tensor in tensors),
            "parameters": sum(math.prod(tensor["shape"]) for tensor in tensors),
        },
        "tensors": tensors,
        "metadata": checkpoint.metadata,
    }
    plain: dict[str, Any] = _plain(report)
    return plain


def _tensor(name: str, view: View) -> dict[str, Any]:
    return {
        "name": name,
        "type": view.dtype.name,
        "shape": list(view.shape),
        "bytes": view.n_bytes,
        "origin": view.origin,
    }


def _extra(extra: Extra) -> dict[str, Any]:
    return {
        "name": extra.name,
        "type": extra.type_name,
        "shape": list(extra.shape),
        "bytes": extra.n_bytes,
        "origin": extra.role or "not used",
    }


def _problem(checkpoint: Checkpoint) -> str | None:
    """Why the model cannot run; None if it can."""
    try:
        model_tensors(checkpoint)
    except RllamaError as error:
        return str(error)
    return None


def _types(tensors: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    types: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        entry = types.setdefault(tensor["type"], {"tensors": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += tensor["bytes"]
    return types


def _config(numbers: dict[str, Any]) -> dict[str, Any]:
    generation = numbers.pop("generation")
    return numbers | {f"generation.{k}": v for k, v in generation.items() if v is not None}


def _tokenizer(checkpoint: Checkpoint) -> dict[str, Any]:
    """Kind, size and special tokens; or why there is none."""
    source = checkpoint.tokenizer
    if source is None:
        return {"kind": "none", "error": checkpoint.no_tokenizer}
    found: dict[str, Any] = {"kind": source.kind, "path": source.path}
    if source.pre:
        found["pre"] = source.pre
    try:
        tokenizer = tokenizers.load_tokenizer(source)
    except RllamaError as error:
        return found | {"error": str(error)}
    return found | {
        "pieces": tokenizer.n_pieces,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "add_bos": tokenizer.add_bos,
    }


def _plain(value: Any) -> Any:
    """The same with nothing in it that JSON lacks: no tuples, no NaN, no bytes."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, int, float)) else str(value)
