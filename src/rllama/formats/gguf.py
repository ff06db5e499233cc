"""GGUF: one file with numbers, tensors and vocabulary."""

from __future__ import annotations

from typing import Any

from rllama.config import ModelConfig
from rllama.dtypes import GGUF_TYPE_NAMES, dtype_by_gguf_id
from rllama.errors import ConfigError, FormatError
from rllama.formats import names
from rllama.formats.checkpoint import Checkpoint
from rllama.formats.files import printable, read_head
from rllama.formats.gguf_header import MAGIC, GgufArray, GgufHeader, GgufTensor, parse
from rllama.formats.hparams import ARCHS
from rllama.formats.hparams_gguf import gguf_config
from rllama.formats.mapped_file import MappedFile
from rllama.formats.shapes import check_extras, check_tensors
from rllama.formats.vocabulary import gguf_vocabulary, n_tokens, tokenizer_kind
from rllama.tensor import TensorView

NAME = "GGUF"
_LISTED = 16  # arrays up to this length are shown in the metadata


def sniff(path: str) -> bool:
    """Whether the file begins like a GGUF."""
    return read_head(path, 4) == MAGIC


def open(path: str, *, param_path: str | None = None, lenient: bool = False) -> Checkpoint:
    """Open a GGUF file.

    Notes:   lenient also accepts what holds no usable model (a vocabulary alone, tensor types and
             architectures that we cannot run): config is None then, for `rllama inspect`
    Raises:  FormatError, UnsupportedError, ConfigError
    """
    if param_path is not None:
        raise ConfigError(
            f"{printable(path)}: a GGUF file has its own numbers; leave out param_path"
        )
    with MappedFile(path) as file:
        header = parse(file)
        metadata = _metadata(header)
        if lenient and _cannot_run(header):
            return _listing(file, header, metadata)
        _require_model(header)
        views = _views(file, header.tensors)
        config = _config(header, views)
        tensors = check_tensors(views, config, names.GGUF, file.where)
        found = [tensor.name for tensor in header.tensors]
        check_extras(found, config.n_layers, names.GGUF, file.where)
        vocabulary = gguf_vocabulary(header)
    return Checkpoint(path, NAME, config, tensors, vocabulary, metadata, file.close)


def _require_model(header: GgufHeader) -> None:
    if not header.values and not header.tensors:
        raise FormatError(f"{header.where}: no architecture: the file has no keys and no tensors")
    if not header.tensors and n_tokens(header):
        raise FormatError(
            f"{header.where}: a vocabulary without weights: a tokenizer, but not a model"
        )
    if not header.tensors and "general.architecture" in header.values:
        raise FormatError(f"{header.where}: the file has no tensors")


def _views(
    file: MappedFile, tensors: list[GgufTensor], *, lenient: bool = False
) -> dict[str, TensorView]:
    """Views under canonical names. Raises UnsupportedError for a type without a registry row."""
    views: dict[str, TensorView] = {}
    for tensor in tensors:
        ours = names.canonical(names.GGUF, tensor.name)
        if ours is None or (tensor.dtype is None and lenient):
            continue
        where = f"{file.where}: tensor {tensor.name!r}"
        dtype = tensor.dtype or dtype_by_gguf_id(tensor.type_id, where)
        data = file.slice(tensor.offset, tensor.n_bytes, where)
        origin = f"{file.where}:{tensor.name}@{tensor.offset:#x}"
        views[ours] = TensorView(data, dtype, tensor.shape, origin)
    return views


def _config(header: GgufHeader, views: dict[str, TensorView]) -> ModelConfig:
    embed = views.get("embed")
    rows = embed.shape[0] if embed is not None and len(embed.shape) == 2 else 0
    count = n_tokens(header)
    if rows and count > rows:
        raise ConfigError(
            f"{header.where}: the vocabulary has {count} tokens, but the embedding has {rows} rows"
        )
    return gguf_config(
        header, vocab_size=rows or max(count, 1), n_tokens=count, tied_head="lm_head" not in views
    )


def _cannot_run(header: GgufHeader) -> bool:
    arch = header.values.get("general.architecture")
    return (
        not header.tensors
        or arch not in ARCHS
        or any(tensor.dtype is None for tensor in header.tensors)
    )


def _listing(file: MappedFile, header: GgufHeader, metadata: dict[str, Any]) -> Checkpoint:
    views = _views(file, header.tensors, lenient=True)
    shown = {names.in_file(names.GGUF, name) for name in views}
    metadata["other_tensors"] = [
        {
            "name": tensor.name,
            "type": GGUF_TYPE_NAMES.get(tensor.type_id, str(tensor.type_id))
            if tensor.dtype is None else tensor.dtype.name,
            "shape": list(tensor.shape),
        }
        for tensor in header.tensors if tensor.name not in shown
    ]  # fmt: skip
    return Checkpoint(file.path, NAME, None, views, gguf_vocabulary(header), metadata, file.close)


def _metadata(header: GgufHeader) -> dict[str, Any]:
    """Keys and values for display, long arrays by their description alone."""
    shown: dict[str, Any] = {"gguf.version": header.version}
    for key, value in header.values.items():
        if not isinstance(value, GgufArray):
            shown[key] = value
        elif value.count > _LISTED:
            shown[key] = str(value)
        elif value.numbers is not None:
            shown[key] = value.numbers.tolist()
        else:
            shown[key] = header.strings(key)
    shown["tokenizer_kind"] = tokenizer_kind(header)
    return shown
