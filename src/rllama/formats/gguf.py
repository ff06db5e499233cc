"""GGUF: numbers, tensors and vocabulary in one file, or in several that belong together."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from rllama.config import ModelConfig, TokenizerSource
from rllama.dtypes import F32, GGUF_TYPE_NAMES, dtype_by_gguf_id
from rllama.errors import ConfigError, FormatError, UnsupportedError
from rllama.formats import experts, names
from rllama.formats.chat_templates import gguf_chat
from rllama.formats.checkpoint import Checkpoint, Extra
from rllama.formats.fields import Fields
from rllama.formats.files import printable, read_head
from rllama.formats.gguf_header import MAGIC, GgufArray, GgufHeader, GgufTensor
from rllama.formats.gguf_split import open_pieces
from rllama.formats.hooks import hooks_of
from rllama.formats.hparams import FindArch, require_arch
from rllama.formats.hparams_gguf import gguf_config
from rllama.formats.hparams_gguf_rope import Factors
from rllama.formats.mapped_file import MappedFile
from rllama.formats.vocabulary import gguf_vocabulary, n_tokens, tokenizer_kind
from rllama.tensor import TensorView, View

NAME = "GGUF"
_LISTED = 16  # arrays up to this length are shown in the metadata


def sniff(path: str) -> bool:
    """Whether the file begins like a GGUF."""
    return read_head(path, 4) == MAGIC


def open(
    path: str,
    *,
    param_path: str | None = None,
    lenient: bool = False,
    find_arch: FindArch | None = None,
) -> Checkpoint:
    """Open a GGUF file, and the other files of its model where it is one of several.

    Notes:   lenient also accepts what holds no usable model (a vocabulary alone, tensor types and
             architectures that we cannot run): config is None then, for `rllama inspect`
    Raises:  FormatError, UnsafeFileError, UnsupportedError, ConfigError
    """
    if param_path is not None:
        raise ConfigError(
            f"{printable(path)}: a GGUF file has its own numbers; leave out param_path"
        )
    with ExitStack() as stack:
        pieces = open_pieces(path, stack)
        checkpoint = _assemble(path, pieces, lenient, find_arch)
        for piece in pieces:
            piece.cursor.file.seal()
        checkpoint.on_close = stack.pop_all().close
    return checkpoint


# A tensor and the file it lies in.
_Placed = tuple[MappedFile, GgufTensor]


def _assemble(
    path: str, pieces: list[GgufHeader], lenient: bool, find_arch: FindArch | None
) -> Checkpoint:
    header = pieces[0]
    tensors = [(piece.cursor.file, tensor) for piece in pieces for tensor in piece.tensors]
    is_listing = lenient and _cannot_run(header, tensors, find_arch)
    if not is_listing:
        _require_model(header, tensors)
    arch = header.values.get("general.architecture")
    hooks = hooks_of(arch, find_arch)
    fields = hooks.fields(Fields(header.values, header.where))
    table = {**names.gguf_table(arch), **hooks.gguf_names}
    views, extras = _views(tensors, table, lenient=is_listing)
    factors = {} if is_listing else _rope_factors(tensors)
    config = None if is_listing else _config(header, fields, views, factors, find_arch)
    if config is not None:
        config = hooks.numbers(fields, config)
        views = _with_gate_up(views, config.ffn_dim)
    found: dict[str, View] = dict(views) if is_listing else experts.split(views)
    vocabulary, problem = _vocabulary(header)
    metadata = _metadata(header)
    if len(pieces) > 1:
        metadata["files"] = [piece.cursor.file.path for piece in pieces]
    return Checkpoint(
        path, NAME, config, found, vocabulary, metadata, None, extras, table,
        gguf_chat(header), problem,
    )  # fmt: skip


def _vocabulary(header: GgufHeader) -> tuple[TokenizerSource | None, str]:
    """The vocabulary, or why there is none that we read."""
    try:
        return gguf_vocabulary(header), ""
    except UnsupportedError as error:
        return None, str(error)


def _require_model(header: GgufHeader, tensors: list[_Placed]) -> None:
    if not header.values and not tensors:
        raise FormatError(f"{header.where}: no architecture: the file has no keys and no tensors")
    if not tensors and n_tokens(header):
        raise FormatError(
            f"{header.where}: a vocabulary without weights: a tokenizer, but not a model"
        )
    if not tensors and "general.architecture" in header.values:
        raise FormatError(f"{header.where}: the file has no tensors")


def _views(
    tensors: list[_Placed], table: names.Table, *, lenient: bool
) -> tuple[dict[str, TensorView], tuple[Extra, ...]]:
    """Views under canonical names, and what has no such name; if lenient, or no type of ours.

    Raises:  UnsupportedError for a type without a registry row
    """
    views: dict[str, TensorView] = {}
    extras: list[Extra] = []
    for file, tensor in tensors:
        ours = names.canonical(table, tensor.name)
        if tensor.name in names.GGUF_ROPE_FACTORS and not lenient:
            continue  # numbers: see _rope_factors
        if ours is None or (tensor.dtype is None and lenient):
            extras.append(_extra(tensor))
            continue
        where = f"{file.where}: tensor {tensor.name!r}"
        dtype = tensor.dtype or dtype_by_gguf_id(tensor.type_id, where)
        data = file.slice(tensor.offset, tensor.n_bytes, where)
        origin = f"{file.where}:{tensor.name}@{tensor.offset:#x}"
        views[ours] = TensorView(data, dtype, tensor.shape, origin)
    return views, tuple(extras)


def _extra(tensor: GgufTensor) -> Extra:
    type_name = GGUF_TYPE_NAMES.get(tensor.type_id, str(tensor.type_id))
    if tensor.dtype is not None:
        type_name = tensor.dtype.name
    return Extra(tensor.name, type_name, tensor.shape, tensor.n_bytes, names.role(tensor.name))


def _config(
    header: GgufHeader,
    fields: Fields,
    views: dict[str, TensorView],
    rope_factors: Factors,
    find_arch: FindArch | None,
) -> ModelConfig:
    embed = views.get("embed")
    rows = embed.shape[0] if embed is not None and len(embed.shape) == 2 else 0
    count = n_tokens(header)
    if rows and count > rows:
        raise ConfigError(
            f"{header.where}: the vocabulary has {count} tokens, but the embedding has {rows} rows"
        )
    return gguf_config(
        fields, vocab_size=rows or max(count, 1), n_tokens=count, tied_head="lm_head" not in views,
        rope_factors=rope_factors, find_arch=find_arch,
    )  # fmt: skip


def _rope_factors(tensors: list[_Placed]) -> Factors:
    """The values of the tensors that are numbers of the config. Raises FormatError."""
    found: dict[str, tuple[float, ...]] = {}
    for file, tensor in tensors:
        if tensor.name not in names.GGUF_ROPE_FACTORS:
            continue
        where = f"{file.where}: tensor {tensor.name!r}"
        if tensor.dtype is not F32 or len(tensor.shape) != 1:
            raise FormatError(f"{where}: a vector of F32 is wanted")
        view = TensorView(
            file.slice(tensor.offset, tensor.n_bytes, where), F32, tensor.shape, where
        )
        found[tensor.name] = tuple(float(value) for value in view.to_f32())
    return found


def _with_gate_up(views: dict[str, TensorView], ffn_dim: int) -> dict[str, TensorView]:
    """The views with the right name for an `ffn_up` that is gate and up in one."""
    renamed: dict[str, TensorView] = {}
    for name, view in views.items():
        layer = name.removesuffix(".w_up")
        is_both = layer != name and f"{layer}.w_gate" not in views and view.shape[0] == 2 * ffn_dim
        renamed[f"{layer}.w_gate_up" if is_both else name] = view
    return renamed


def _cannot_run(header: GgufHeader, tensors: list[_Placed], find_arch: FindArch | None) -> bool:
    arch = header.values.get("general.architecture")
    if not tensors or not isinstance(arch, str):
        return True
    try:
        require_arch(arch, find_arch, header.where)
    except UnsupportedError:
        return True
    return any(tensor.dtype is None for _, tensor in tensors)


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
