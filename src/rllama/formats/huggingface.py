"""Hugging Face layout: config.json beside safetensors, whole or in indexed shards."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np

from rllama.errors import ConfigError, FormatError, UnsafeFileError
from rllama.formats import experts, names
from rllama.formats.chat_templates import folder_chat
from rllama.formats.checkpoint import Checkpoint, Extra
from rllama.formats.fields import Fields
from rllama.formats.files import is_dir, is_file, leaves_folder, list_dir, printable, read_head
from rllama.formats.hf_families import hf_family
from rllama.formats.hooks import Hooks, hooks_of
from rllama.formats.hparams import FindArch
from rllama.formats.hparams_hf import hf_config, text_part
from rllama.formats.json_file import INDEX_LIMIT_BYTES, read_fields, read_json
from rllama.formats.mapped_file import ByteSource, MappedFile
from rllama.formats.packed_linears import packed_linears
from rllama.formats.quant_config import QuantScheme, read_scheme
from rllama.formats.safetensors import Entry, read_entries, sniff_file, views
from rllama.formats.tokenizer_files import tokenizer_beside
from rllama.formats.torch_archive import is_bare_pickle, is_torch_path
from rllama.formats.torch_file import TorchFile, holds_names
from rllama.formats.unknown import known_kind
from rllama.tensor import TensorView, View

log = logging.getLogger(__name__)

NAME = "safetensors"
_TORCH = "torch files with Hugging Face names"
_INDEX_ENDING = ".index.json"
# The beginnings and endings of weight files, the preferred kind first.
_PART = re.compile(r"-[0-9]+-of-[0-9]+\.", re.ASCII)
_KINDS = (("", ".safetensors"), ("pytorch_model", ".bin"))


def sniff(path: str) -> bool:
    """Whether this is a file of safetensors, or a torch file with Hugging Face's names; or a folder
    with some, torch files only beside a config.json."""
    if not is_dir(path):
        is_torch = is_torch_path(path) and holds_names(path, names.HF)
        return sniff_file(path) or is_torch or _is_index(path)
    there = list_dir(path)
    safetensors, torch = (any(_of_kind(there, *kind)) for kind in _KINDS)
    return safetensors or (torch and "config.json" in there)


def _of_kind(there: list[str], beginning: str, ending: str) -> tuple[list[str], list[str]]:
    """The weight files of a kind in a folder, and their indexes."""
    files = [name for name in there if name.startswith(beginning) and name.endswith(ending)]
    return files, [name for name in there if name.endswith(ending + _INDEX_ENDING)]


def _is_index(path: str) -> bool:
    return path.endswith(tuple(ending + _INDEX_ENDING for _, ending in _KINDS)) and (
        read_head(path).lstrip()[:1] == b"{"
    )


def _index_beside(path: str) -> str | None:
    """The index of the model that a file is a shard of; None if it is a model of its own."""
    folder, name = os.path.split(path)
    if _is_index(path):
        return name
    if not _PART.search(name):
        return None
    indexes = [other for other in list_dir(folder or ".") if other.endswith(_INDEX_ENDING)]
    listing = [i for i in indexes if name in _weight_map(os.path.join(folder, i)).values()]
    return listing[0] if len(listing) == 1 else None


def open(
    path: str,
    *,
    param_path: str | None = None,
    lenient: bool = False,
    find_arch: FindArch | None = None,
) -> Checkpoint:
    """Open a folder, or one file with its config.json beside it.

    Notes:   a file that is one of several shards, or their index, stands for all of them;
             param_path names another config.json
    Raises:  FormatError, UnsafeFileError, UnsupportedError, ConfigError
    """
    folder = path if is_dir(path) else os.path.dirname(path)
    config = _config_fields(path, folder, param_path)
    hooks = hooks_of(config.values.get("model_type"), find_arch)
    config = hooks.fields(config)
    text_part(config, find_arch)  # before tensors are asked for that other models do not have
    with ExitStack() as stack:
        shards = _open_shards(path, stack)
        _refuse_twins(shards)
        checkpoint = _assemble(path, folder, config, shards, hooks, find_arch)
        for file, _, _ in shards:
            file.seal()
        checkpoint.on_close = stack.pop_all().close
    return checkpoint


Shard = tuple[ByteSource, dict[str, Entry], dict[str, str]]


def _config_fields(path: str, folder: str, param_path: str | None) -> Fields:
    config_path = param_path or os.path.join(folder, "config.json")
    if param_path is None and not is_file(config_path):
        raise ConfigError(
            f"{printable(path)}: these weights need a config.json beside them, or a param_path "
            "that names one"
        )
    return read_fields(config_path, ConfigError)


def _open_shards(path: str, stack: ExitStack) -> list[Shard]:
    folder, single = (path, "") if is_dir(path) else os.path.split(path)
    index, single = (_index_beside(path), single) if single else _choose(path)
    if index is None:
        return [_open_shard(os.path.join(folder, single), stack)]
    weight_map = _weight_map(os.path.join(folder, index))
    shards: list[Shard] = []
    for name in dict.fromkeys(weight_map.values()):
        shards.append(_open_shard(_shard_path(folder, name, index), stack))
    _check_index(weight_map, shards, index)
    return shards


def _open_shard(path: str, stack: ExitStack) -> Shard:
    if not sniff_file(path) and (is_torch_path(path) or is_bare_pickle(path)):
        torch_file = TorchFile(path)
        stack.callback(torch_file.close)
        return torch_file, torch_file.entries(), {}
    if kind := known_kind(read_head(path)):
        raise FormatError(f"{printable(path)}: {kind}")
    file = MappedFile(path)
    stack.callback(file.close)
    entries, metadata = read_entries(file)
    return file, entries, metadata


def _choose(folder: str) -> tuple[str | None, str]:
    """The index to follow, or the one file there is. Raises ConfigError if that is not clear."""
    there = list_dir(folder)
    kinds = [kind for kind in _KINDS if any(_of_kind(there, *kind))]
    whole = [kind for kind in kinds if _is_whole(folder, there, *kind)]
    beginning, ending = (whole or kinds)[0]
    files, indexes = _of_kind(there, beginning, ending)
    if "model.safetensors" in files:  # its twins under other names of tensors are not read
        files = [name for name in files if not name.startswith("consolidated")]
    where = printable(folder)
    if len(indexes) > 1:
        indexes = [name for name in indexes if _is_complete(folder, name, there)] or indexes
    if len(indexes) > 1:
        raise ConfigError(f"{where}: several indexes: {', '.join(indexes)}; keep the one to use")
    if indexes:
        single = f"{beginning or 'model'}{ending}"
        if single in files and single not in _weight_map(os.path.join(folder, indexes[0])).values():
            raise ConfigError(
                f"{where}: both {single} and {indexes[0]} are here and disagree; name the file to "
                "use, or remove one"
            )
        return indexes[0], ""
    if len(files) != 1:
        raise ConfigError(
            f"{where}: {len(files)} {ending[1:]} files and no index: {', '.join(files[:8])}; name "
            "the file to use"
        )
    return None, files[0]


def _is_whole(folder: str, there: list[str], beginning: str, ending: str) -> bool:
    """Whether all weight files of a kind are there."""
    files, indexes = _of_kind(there, beginning, ending)
    if indexes:
        return any(_is_complete(folder, index, there) for index in indexes)
    return not any(_PART.search(name) for name in files)


def _is_complete(folder: str, index: str, there: list[str]) -> bool:
    """Whether all files of an index are in its folder."""
    return set(_weight_map(os.path.join(folder, index)).values()) <= set(there)


def _weight_map(index_path: str) -> dict[str, str]:
    where = printable(index_path)
    weight_map = read_json(index_path, FormatError, INDEX_LIMIT_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{where}: weight_map must be an object that names tensors and files")
    for tensor, name in weight_map.items():
        if not isinstance(name, str):
            raise FormatError(f"{where}: weight_map of {ascii(tensor)[:80]} is no file name")
    return weight_map


def _shard_path(folder: str, name: str, index: str) -> str:
    """Where a shard lies. Raises UnsafeFileError if its name leads out of the folder."""
    where = f"{printable(os.path.join(folder, index))}: weight_map names {ascii(name)[:120]}"
    if not name or name in (".", "..") or any(char in name for char in "/\\:\x00"):
        raise UnsafeFileError(f"{where}; only plain file names are followed")
    path = os.path.join(folder, name)
    if not os.path.lexists(path):
        raise FormatError(f"{where}, which is missing")
    if leaves_folder(path):
        raise UnsafeFileError(f"{where}, a link that leaves the folder")
    return path


def _check_index(weight_map: dict[str, str], shards: list[Shard], index: str) -> None:
    by_name = {os.path.basename(file.path): entries for file, entries, _ in shards}
    where = printable(os.path.join(os.path.dirname(shards[0][0].path), index))
    for tensor, name in weight_map.items():
        if tensor not in by_name[name]:
            raise FormatError(f"{where}: tensor '{printable(tensor)}' is not in {printable(name)}")


def _refuse_twins(shards: list[Shard]) -> None:
    home: dict[str, str] = {}
    for file, entries, _ in shards:
        for name in entries:
            if name in home:
                raise FormatError(
                    f"{file.where}: tensor '{printable(name)}' is also in {home[name]}"
                )
            home[name] = file.where


def _assemble(
    path: str, folder: str, config: Fields, shards: list[Shard], hooks: Hooks,
    find_arch: FindArch | None,
) -> Checkpoint:  # fmt: skip
    table = names.hf_table(name for _, entries, _ in shards for name in entries)
    table = {**table, **hooks.hf_names}
    found, extras = _views(shards, table, read_scheme(config, folder))
    embed = found.get("embed")
    where = printable(path)
    if embed is None or len(embed.shape) != 2:
        raise ConfigError(f"{where}: tensor 'model.embed_tokens.weight' is missing or no matrix")
    generation_path = os.path.join(folder, "generation_config.json")
    generation = read_fields(generation_path, ConfigError) if is_file(generation_path) else None
    if "auto_map" in config:
        log.info("%s: auto_map is ignored; code in model folders is never run", config.where)
    numbers = hf_config(
        config, generation, vocab_size=embed.shape[0], embed_dtype=embed.dtype, tensors=found,
        name=os.path.basename(os.path.abspath(path)), find_arch=find_arch,
    )  # fmt: skip
    numbers = hooks.numbers(config, numbers)
    if numbers.tied_head and "lm_head" in found:
        _check_tied(embed, found["lm_head"], where)
    metadata: dict[str, Any] = {"files": [file.path for file, _, _ in shards]}
    metadata |= {key: value for _, _, extra in shards for key, value in extra.items()}
    tokenizer, problem = tokenizer_beside(folder, numbers.vocab_size)
    kind = _TORCH if any(isinstance(file, TorchFile) for file, _, _ in shards) else NAME
    return Checkpoint(
        path, kind, numbers, experts.split(found, turned=hf_family(numbers.arch).turned_experts),
        tokenizer, metadata, extras=extras, names=table, chat=folder_chat(folder),
        no_tokenizer=problem,
    )  # fmt: skip


def _views(
    shards: list[Shard], table: names.Table, scheme: QuantScheme | None
) -> tuple[dict[str, View], tuple[Extra, ...]]:
    packed, taken = packed_linears([shard[:2] for shard in shards], scheme, shards[0][0].where)
    found: dict[str, View] = {}
    extras: list[Extra] = []
    for name, view in packed.items():
        ours = names.canonical(table, names.hf_text_name(name))
        if ours is not None:
            found[ours] = view
        else:
            extras.append(Extra(name, view.dtype.name, view.shape, view.n_bytes, names.role(name)))
    for file, entries, _ in shards:
        wanted: dict[str, str] = {}
        for name, entry in entries.items():
            if name in taken:
                continue
            ours = names.canonical(table, names.hf_text_name(name))
            if ours is not None:
                wanted[name] = ours
                continue
            role = names.role(name)
            extras.append(Extra(name, entry.dtype, entry.shape, entry.n_bytes, role))
        found |= experts.packed_views(file, entries, wanted)
        found |= views(file, entries, wanted)
    return found, tuple(extras)


def _chunks(view: TensorView, size: int = 1 << 24) -> Iterator[np.ndarray]:
    data = np.frombuffer(view.data, dtype=np.uint8)
    return (data[at : at + size] for at in range(0, data.size, size))


def _check_tied(embed: View, head: View, where: str) -> None:
    """A head that is stored although it is tied must be the embedding. Raises ConfigError."""
    same = (
        isinstance(embed, TensorView)
        and isinstance(head, TensorView)
        and (embed.shape, embed.dtype) == (head.shape, head.dtype)
        and all(np.array_equal(a, b) for a, b in zip(_chunks(embed), _chunks(head), strict=True))
    )
    if not same:
        raise ConfigError(
            f"{where}: tie_word_embeddings is true, but lm_head.weight differs from the embedding"
        )
