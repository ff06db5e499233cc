"""What to say about a path or a folder where there is no model of its own."""

from __future__ import annotations

import os
import re

from rllama.errors import ConfigError, RllamaError, UnsupportedError
from rllama.formats.fields import shown
from rllama.formats.files import is_dir, is_file, list_dir, printable, read_head
from rllama.formats.json_file import CONFIG_LIMIT_BYTES, read_json
from rllama.formats.unknown import known_kind

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_URL = re.compile(r"[a-z]{2,8}:/", re.ASCII)
_ADAPTER, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model."
_WEIGHTS = (".gguf", ".safetensors", ".bin", ".pth", ".pt")
_MAX_LISTED = 2000
# Endings of files that are no weights of ours, and what they are.
_SEEN = (
    (".incomplete", "an unfinished download"),
    (".part", "an unfinished download"),
    (".onnx", "ONNX, which is not read"),
    (".h5", "TensorFlow weights, which are not read"),
    (".msgpack", "Flax weights, which are not read"),
    (".ckpt.index", "TensorFlow weights, which are not read"),
)


def require_there(path: str) -> None:
    """Raises ConfigError for what is no path at all but the name of a model on a hub."""
    if "\x00" in path or os.path.lexists(path):
        return
    if _URL.match(path) or (_HUB_ID.fullmatch(path) and not os.path.lexists(path.split("/")[0])):
        raise ConfigError(
            f"{printable(path)}: no such file or folder, and nothing is downloaded here: fetch the "
            "model and name its file or folder"
        )


def refuse_adapter(path: str) -> None:
    """Raises UnsupportedError for a LoRA adapter: a folder of one, or its weights."""
    folder, name = (path, "") if is_dir(path) else os.path.split(path)
    config = os.path.join(folder, _ADAPTER)
    if not is_file(config):
        return
    weights = [name] if name else [n for n in list_dir(folder) if n.endswith(_WEIGHTS)]
    if not all(weight.startswith(_ADAPTER_WEIGHTS) for weight in weights):
        return
    try:
        base = read_json(config, ConfigError, CONFIG_LIMIT_BYTES).get("base_model_name_or_path")
    except RllamaError:
        base = None
    named = f" ({shown(base)})" if isinstance(base, str) and base else ""
    raise UnsupportedError(
        f"{printable(path)}: a LoRA adapter, not a model: merge it into its base model{named} and "
        "name the result"
    )


def what_is_there(folder: str) -> str:
    """A clause on what a folder without weights has instead; "" for nothing of note."""
    there = list_dir(folder)[:_MAX_LISTED]
    if "snapshots" in there and is_dir(os.path.join(folder, "snapshots")):
        return _of_cache(os.path.join(folder, "snapshots"))
    for name in there:
        path = os.path.join(folder, name)
        kind = next((kind for ending, kind in _SEEN if name.endswith(ending)), "")
        if not kind and name.endswith(_WEIGHTS) and is_file(path):
            kind = _kind_of(path)
        if kind:
            return f"; {printable(name)} is here: {kind}"
    inside = [name for name in there if _holds_weights(os.path.join(folder, name))]
    return f"; sub-folders have some: {_listed(inside)}; name one of them" if inside else ""


def _of_cache(snapshots: str) -> str:
    """Of the folder that a download cache has for a model."""
    names = [name for name in list_dir(snapshots) if _holds_weights(os.path.join(snapshots, name))]
    if not names:
        return "; it is of a download cache, without a snapshot that has any"
    return f"; it is of a download cache: name snapshots/{_listed(names)} in it"


def _listed(names: list[str]) -> str:
    return ", ".join(printable(name) for name in names[:4])


def _kind_of(path: str) -> str:
    try:
        return known_kind(read_head(path))
    except RllamaError:
        return ""


def _holds_weights(path: str) -> bool:
    """Whether this is a folder with files that are called as weights are."""
    try:
        return is_dir(path) and any(name.endswith(_WEIGHTS) for name in list_dir(path))
    except RllamaError:
        return False
