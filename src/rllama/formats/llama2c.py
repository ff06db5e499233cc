"""llama2.c model files: version 0 (no magic), 1 (f32) and 2 (int8 groups)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import numpy as np

from rllama.config import ModelConfig, TokenizerSource
from rllama.dtypes import F32, Q8_F32, DType
from rllama.errors import ConfigError, FormatError, MemoryPlanError, UnsupportedError
from rllama.formats.checkpoint import Checkpoint
from rllama.formats.files import printable, read_head, stat_path
from rllama.formats.hparams import Llama2cHeader, llama2c_config
from rllama.formats.mapped_file import MappedFile
from rllama.formats.names import LLAMA2C, in_file
from rllama.formats.shapes import check_tensors, expected_shapes
from rllama.formats.tokenizer_files import find_tokenizer
from rllama.memory import available_memory
from rllama.tensor import TensorView

NAME = "llama2.c"
MAGIC = struct.pack("<I", 0x616B3432)
_START = 256  # of the arrays, in versions 1 and 2
_NUMBERS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
_MATRICES = ("wq", "wk", "wv", "wo")
_FFN_MATRICES = ("w_gate", "w_down", "w_up")  # w1, w2, w3


def sniff(path: str) -> bool:
    """Whether the file has the magic, or seven numbers that explain its size to the byte."""
    head = read_head(path, 28)
    if head[:4] == MAGIC:
        return True
    header = _plausible(head)
    return header is not None and size_of(header) == stat_path(path).st_size


def plausible_size(head: bytes) -> int | None:
    """The size that a version 0 file with this header should have; None if it is no header."""
    header = _plausible(head)
    return None if header is None else size_of(header)


def open(path: str, *, param_path: str | None = None, lenient: bool = False) -> Checkpoint:
    """Open a llama2.c file.

    Notes:   version 2 is copied into blocks of 32 where its groups allow, else made F32;
             the vocabulary is tok<n>.bin, tokenizer.bin or tokenizer.model beside the file
    Raises:  FormatError, UnsupportedError, ConfigError, MemoryPlanError
    """
    if param_path is not None:
        raise ConfigError(
            f"{printable(path)}: a llama2.c file has its own numbers; leave out param_path"
        )
    with MappedFile(path) as file:
        header = _read_header(file)
        stem = os.path.splitext(os.path.basename(path))[0]
        config = llama2c_config(header, file.where, stem)
        _check_size(file, header)
        if header.version == 2:
            _require_memory(file, header, config)
            tensors = dict(_read_groups(file, header, config))
        else:
            tensors = dict(_map_floats(file, header, config))
        tensors = check_tensors(tensors, config, LLAMA2C, file.where)
        tokenizer = _tokenizer(path, config.vocab_size)
    metadata = {"llama2c.version": header.version, "llama2c.group_size": header.group_size}
    return Checkpoint(path, NAME, config, tensors, tokenizer, metadata, file.close)


def _tokenizer(path: str, vocab_size: int) -> TokenizerSource | None:
    """The vocabulary beside the file. Raises FormatError if it has another number of pieces."""
    found = find_tokenizer(os.path.dirname(path), vocab_size=vocab_size)
    if found is not None and found.vocab_size not in (None, vocab_size):
        raise FormatError(
            f"{printable(found.path or '')}: {found.vocab_size} tokens, but {printable(path)} has "
            f"{vocab_size}"
        )
    return found


# ---- header ----


def _plausible(head: bytes) -> Llama2cHeader | None:
    if len(head) < 28:
        return None
    numbers = struct.unpack("<7i", head[:28])
    dim, _, n_layers, n_heads, n_kv_heads, vocab, _ = numbers
    if min(*numbers[:5], numbers[6], abs(vocab)) <= 0 or vocab == -(2**31):
        return None
    if dim % n_heads or n_heads % n_kv_heads or n_layers > 4096 or max(numbers) >= 2**24:
        return None
    return _legacy(numbers)


def _make(
    version: int, numbers: tuple[int, ...], *, shared: bool, start: int, group_size: int = 0
) -> Llama2cHeader:
    dim, ffn_dim, n_layers, n_heads, n_kv_heads, vocab, seq_len = numbers
    return Llama2cHeader(
        version, dim, ffn_dim, n_layers, n_heads, n_kv_heads, abs(vocab), seq_len,
        shared_head=shared, start=start, group_size=group_size,
    )  # fmt: skip


def _legacy(numbers: tuple[int, ...]) -> Llama2cHeader:
    return _make(0, numbers, shared=numbers[5] > 0, start=28)


def _read_header(file: MappedFile) -> Llama2cHeader:
    if file.read(0, 4, "magic") != MAGIC:
        numbers = file.unpack("<7i", 0, "header")
        _check_numbers(file, numbers, 0)
        return _legacy(numbers)
    (version,) = file.unpack("<i", 4, "version")
    if version not in (1, 2):
        raise UnsupportedError(
            f"{file.where}: llama2.c version {version} at offset 4 is not supported; 0, 1 and 2 are"
        )
    file.require(0, _START, "header")
    numbers = file.unpack("<7i", 8, "header")
    _check_numbers(file, numbers, 8)
    if numbers[5] < 0:
        raise FormatError(f"{file.where}: vocab_size {numbers[5]} at offset 28 is negative")
    shared, group_size = file.unpack("<Bi", 36, "header")
    if shared > 1:
        raise FormatError(f"{file.where}: the flag at offset 36 is {shared}, not 0 or 1")
    if version == 1:
        return _make(1, numbers, shared=shared == 1, start=_START)
    if group_size < 1 or numbers[0] % group_size:
        raise FormatError(
            f"{file.where}: group size {group_size} at offset 37 does not divide dim {numbers[0]}"
        )
    return _make(2, numbers, shared=shared == 1, start=_START, group_size=group_size)


def _check_numbers(file: MappedFile, numbers: tuple[int, ...], start: int) -> None:
    for index, (name, value) in enumerate(zip(_NUMBERS, numbers, strict=True)):
        low = -(2**31) + 1 if name == "vocab_size" else 1
        if value < low or value == 0:
            raise FormatError(f"{file.where}: {name} at offset {start + 4 * index} is {value}")


def _counts(header: Llama2cHeader) -> tuple[int, int]:
    """Values in all norms, and values in all matrices."""
    dim, kv_dim = header.dim, header.dim // header.n_heads * header.n_kv_heads
    norms = (2 * header.n_layers + 1) * dim
    layer = 2 * dim * dim + 2 * kv_dim * dim + 3 * header.ffn_dim * dim
    n_tables = 1 if header.shared_head else 2
    return norms, header.n_layers * layer + n_tables * header.vocab_size * dim


def size_of(header: Llama2cHeader) -> int:
    """Bytes of a file with this header."""
    norms, matrices = _counts(header)
    if header.version == 2:
        return header.start + 4 * norms + matrices + 4 * (matrices // header.group_size)
    rotations = header.seq_len * (header.dim // header.n_heads) if header.version == 0 else 0
    return header.start + 4 * (norms + matrices + rotations)


def _check_size(file: MappedFile, header: Llama2cHeader) -> None:
    want = size_of(header)
    if want != file.n_bytes:
        raise FormatError(
            f"{file.where}: a llama2.c version {header.version} header with these numbers needs a "
            f"file of {want} bytes, not {file.n_bytes}; it is truncated or no such file"
        )


# ---- arrays ----


def _order(header: Llama2cHeader, config: ModelConfig) -> Iterator[str]:
    """Canonical names in the order of the file; "" stands for version 0's tables of rotations."""
    n = config.n_layers

    def all_layers(*kinds: str) -> Iterator[str]:
        return (f"layers.{i}.{kind}" for kind in kinds for i in range(n))

    if header.version == 0:
        yield "embed"
        yield from all_layers("attn_norm", *_MATRICES, "ffn_norm", *_FFN_MATRICES)
        yield "final_norm"
        yield ""
    else:
        yield from all_layers("attn_norm", "ffn_norm")
        yield "final_norm"
        yield "embed"
        yield from all_layers(*_MATRICES, *_FFN_MATRICES)
    if not config.tied_head:
        yield "lm_head"


def _origin(file: MappedFile, name: str, offset: int) -> str:
    return f"{file.where}:{in_file(LLAMA2C, name)}@{offset:#x}"


def _map_floats(
    file: MappedFile, header: Llama2cHeader, config: ModelConfig
) -> Iterator[tuple[str, TensorView]]:
    shapes, at = expected_shapes(config), header.start
    for name in _order(header, config):
        if name == "":
            at += 4 * header.seq_len * config.head_dim
            continue
        n_bytes = F32.n_bytes(shapes[name])
        data = file.slice(at, n_bytes, name)
        yield name, TensorView(data, F32, shapes[name], _origin(file, name, at))
        at += n_bytes


def _type_of(shape: tuple[int, ...], group_size: int) -> DType:
    """Blocks of 32 where groups and rows allow it, else plain floats."""
    return F32 if group_size % 32 or shape[-1] % 32 else Q8_F32


def _require_memory(file: MappedFile, header: Llama2cHeader, config: ModelConfig) -> None:
    """Raises MemoryPlanError, before anything is copied, if the copies do not fit."""
    matrices = [shape for shape in expected_shapes(config).values() if len(shape) == 2]
    need = sum(_type_of(shape, header.group_size).n_bytes(shape) for shape in matrices)
    have = available_memory()
    if need > have.n_bytes:
        raise MemoryPlanError(
            f"{file.where}: the groups of llama2.c version 2 are copied at load; that takes "
            f"{need / 1e9:.2f} GB, {have.n_bytes / 1e9:.2f} GB are there ({have.limit})"
        )


def _read_groups(
    file: MappedFile, header: Llama2cHeader, config: ModelConfig
) -> Iterator[tuple[str, TensorView]]:
    shapes, at = expected_shapes(config), header.start
    for name in _order(header, config):
        shape, origin = shapes[name], _origin(file, name, at)
        if len(shape) == 1:
            n_bytes = F32.n_bytes(shape)
            yield name, TensorView(file.slice(at, n_bytes, name), F32, shape, origin)
            at += n_bytes
            continue
        n_values = shape[0] * shape[1]
        n_scales = n_values // header.group_size
        values = np.frombuffer(file.read(at, n_values, name), dtype=np.int8)
        scales = np.frombuffer(file.read(at + n_values, 4 * n_scales, name), dtype="<f4")
        yield name, _reblock(values, scales, shape, header.group_size, origin)
        at += n_values + 4 * n_scales


def _reblock(
    values: np.ndarray, scales: np.ndarray, shape: tuple[int, ...], group_size: int, origin: str
) -> TensorView:
    """Values in the type of `_type_of`, each block with its group's scale."""
    if _type_of(shape, group_size) is F32:
        floats = values.reshape(-1, group_size) * scales.reshape(-1, 1)
        return _view(floats, F32, shape, origin)
    blocks = np.empty((values.size // 32, 36), dtype=np.uint8)
    block_scales = np.repeat(scales, group_size // 32).reshape(-1, 1)
    blocks[:, :4] = block_scales.view(np.uint8)
    blocks[:, 4:] = values.view(np.uint8).reshape(-1, 32)
    return _view(blocks, Q8_F32, shape, origin)


def _view(array: np.ndarray, dtype: DType, shape: tuple[int, ...], origin: str) -> TensorView:
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    data = memoryview(array.reshape(-1).view(np.uint8).data)
    return TensorView(data, dtype, shape, origin)
