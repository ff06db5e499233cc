"""llama2.c model files: version 0 (no magic), 1 (f32) and 2 (int8 groups)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from rllama.config import TokenizerSource
from rllama.dtypes import F32, Q8_F32, DType
from rllama.errors import ConfigError, FormatError, MemoryPlanError
from rllama.formats.checkpoint import Checkpoint
from rllama.formats.files import printable, read_head, stat_path
from rllama.formats.hparams import FindArch
from rllama.formats.llama2c_header import (
    MAGIC,
    ROTATIONS,
    Llama2cHeader,
    check_size,
    llama2c_config,
    plausible,
    read_header,
)
from rllama.formats.mapped_file import MappedFile
from rllama.formats.names import LLAMA2C, in_file
from rllama.formats.tokenizer_files import tokenizer_beside
from rllama.memory import available_memory
from rllama.tensor import TensorView, in_memory

NAME = "llama2.c"


def sniff(path: str) -> bool:
    """Whether the file has the magic, or seven numbers that explain its size to the byte."""
    head = read_head(path, 28)
    if head[:4] == MAGIC:
        return True
    header = plausible(head)
    return header is not None and header.n_bytes == stat_path(path).st_size


def open(
    path: str,
    *,
    param_path: str | None = None,
    lenient: bool = False,
    find_arch: FindArch | None = None,
) -> Checkpoint:
    """Open a llama2.c file.

    Notes:   version 2 is copied into blocks of 32 where its groups allow, else made F32;
             the vocabulary is tok<n>.bin or another tokenizer beside the file
    Raises:  FormatError, UnsupportedError, ConfigError, MemoryPlanError
    """
    if param_path is not None:
        raise ConfigError(
            f"{printable(path)}: a llama2.c file has its own numbers; leave out param_path"
        )
    with MappedFile(path) as file:
        header = read_header(file)
        stem = os.path.splitext(os.path.basename(path))[0]
        config = llama2c_config(header, file.where, stem)
        check_size(file, header)
        if header.version == 2:
            _require_memory(file, header)
            tensors = dict(_read_groups(file, header))
        else:
            tensors = dict(_map_floats(file, header))
        tokenizer, problem = _tokenizer(path, config.vocab_size)
    metadata = {"llama2c.version": header.version, "llama2c.group_size": header.group_size}
    return Checkpoint(
        path, NAME, config, tensors, tokenizer, metadata, file.close, names=LLAMA2C,
        no_tokenizer=problem,
    )  # fmt: skip


def _tokenizer(path: str, vocab_size: int) -> tuple[TokenizerSource | None, str]:
    """The vocabulary beside the file. Raises FormatError if it has another number of pieces."""
    found, problem = tokenizer_beside(os.path.dirname(path), vocab_size)
    if found is not None and found.kind == "vocab" and len(found.pieces) != vocab_size:
        raise FormatError(
            f"{printable(found.path or '')}: {len(found.pieces)} tokens, but {printable(path)} has "
            f"{vocab_size}"
        )
    return found, problem


def _map_floats(file: MappedFile, header: Llama2cHeader) -> Iterator[tuple[str, TensorView]]:
    at = header.start
    for name, shape in header.layout():
        n_bytes = header.array_bytes(shape)
        if name != ROTATIONS:
            yield name, _map_array(file, name, shape, at)
        at += n_bytes


def _map_array(file: MappedFile, name: str, shape: tuple[int, ...], offset: int) -> TensorView:
    data = file.slice(offset, F32.n_bytes(shape), name)
    return TensorView(data, F32, shape, _origin(file, name, offset))


def _origin(file: MappedFile, name: str, offset: int) -> str:
    return f"{file.where}:{in_file(LLAMA2C, name)}@{offset:#x}"


def _type_of(shape: tuple[int, ...], group_size: int) -> DType:
    """Blocks of 32 where groups and rows allow it, else plain floats."""
    return F32 if group_size % 32 or shape[-1] % 32 else Q8_F32


def _require_memory(file: MappedFile, header: Llama2cHeader) -> None:
    """Raises MemoryPlanError, before anything is copied, if the copies do not fit."""
    need = sum(
        count * _type_of(shape, header.group_size).n_bytes(shape)
        for _, shape, count in header.arrays()
        if len(shape) == 2
    )
    have = available_memory()
    if need > have.n_bytes:
        raise MemoryPlanError(
            f"{file.where}: the groups of llama2.c version 2 are copied at load; that takes "
            f"{need / 1e9:.2f} GB, {have.n_bytes / 1e9:.2f} GB are there ({have.limit})"
        )


def _read_groups(file: MappedFile, header: Llama2cHeader) -> Iterator[tuple[str, TensorView]]:
    at = header.start
    for name, shape in header.layout():
        if len(shape) == 1:
            yield name, _map_array(file, name, shape, at)
        else:
            n_values = shape[0] * shape[1]
            n_scales = n_values // header.group_size
            values = np.frombuffer(file.read(at, n_values, name), dtype=np.int8)
            scales = np.frombuffer(file.read(at + n_values, 4 * n_scales, name), dtype="<f4")
            origin = _origin(file, name, at)
            yield name, _reblock(values, scales, shape, header.group_size, origin)
        at += header.array_bytes(shape)


def _reblock(
    values: np.ndarray, scales: np.ndarray, shape: tuple[int, ...], group_size: int, origin: str
) -> TensorView:
    """Values in the type of `_type_of`, each block with its group's scale."""
    if _type_of(shape, group_size) is F32:
        floats = values.reshape(-1, group_size) * scales.reshape(-1, 1)
        return in_memory(floats, F32, shape, origin)
    blocks = np.empty((values.size // 32, 36), dtype=np.uint8)
    block_scales = np.repeat(scales, group_size // 32).reshape(-1, 1)
    blocks[:, :4] = block_scales.view(np.uint8)
    blocks[:, 4:] = values.view(np.uint8).reshape(-1, 32)
    return in_memory(blocks, Q8_F32, shape, origin)
