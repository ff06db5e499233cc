"""llama2.rs model files: llama2.c's order, matrices in 4-bit groups as GPTQ makes them."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rllama.config import ModelConfig
from rllama.dtypes import F32, Q8_F32
from rllama.errors import ConfigError, FormatError, UnsupportedError
from rllama.formats.checkpoint import Checkpoint
from rllama.formats.files import printable, read_head, stat_path
from rllama.formats.hparams import FindArch, build
from rllama.formats.llama2c_header import plausible
from rllama.formats.llama2rs_layout import HEADER_BYTES, Layout, readings
from rllama.formats.mapped_file import MappedFile
from rllama.formats.names import LLAMA2C, in_file
from rllama.formats.tokenizer_files import tokenizer_beside
from rllama.packed import PackedView, packed_dtype
from rllama.tensor import TensorView, View

log = logging.getLogger(__name__)

NAME = "llama2.rs"
_THETAS = (10000.0, 500000.0, 1000000.0)
_TABLES = ("cosines", "sines")


def sniff(path: str) -> bool:
    """Whether seven numbers explain the size of the file, in one way or another."""
    header = plausible(read_head(path, HEADER_BYTES))
    return header is not None and bool(readings(header, stat_path(path).st_size))


def open(
    path: str,
    *,
    param_path: str | None = None,
    lenient: bool = False,
    find_arch: FindArch | None = None,
) -> Checkpoint:
    """Open a llama2.rs file, of either age.

    Notes:   group size, number of key and value heads and age follow from the size of the file;
             where several fit, the tables of rotations have to be where they should
    Raises:  FormatError, UnsupportedError, ConfigError
    """
    where = printable(path)
    if param_path is not None:
        raise ConfigError(f"{where}: a llama2.rs file has its own numbers; leave out param_path")
    with MappedFile(path) as file:
        header = plausible(file.read(0, HEADER_BYTES, "header"))
        found = [] if header is None else readings(header, file.n_bytes)
        layout = _the_one(found, file)
        config = _config(file, layout, os.path.splitext(os.path.basename(path))[0])
        tensors = dict(_tensors(file, layout))
        tokenizer, problem = tokenizer_beside(os.path.dirname(path), config.vocab_size)
    if any(view.dtype is Q8_F32 for view in tensors.values()):
        log.warning("%s: scales that half precision cannot hold stay f32; such matrices take twice "
                    "the memory", where)  # fmt: skip
    metadata = {"llama2rs.group_size": layout.group_size, "llama2rs.has_order": layout.is_new}
    return Checkpoint(
        path, NAME, config, tensors, tokenizer, metadata, file.close, names=LLAMA2C,
        no_tokenizer=problem,
    )  # fmt: skip


def _the_one(found: list[Layout], file: MappedFile) -> Layout:
    fitting = [layout for layout in found if _starts_unturned(file, layout)]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        wanted = found[0].header.n_bytes if found else "other"
        raise FormatError(
            f"{file.where}: {file.n_bytes} bytes are those of a llama2.rs file, but its table of "
            f"rotations is not where it should be; one of llama2.c would have {wanted} bytes"
        )
    kinds = ", ".join(
        f"{layout.n_kv_heads} key heads in groups of {layout.group_size}" for layout in fitting[:4]
    )
    raise UnsupportedError(f"{file.where}: the size fits several layouts ({kinds})")


def _row(file: MappedFile, layout: Layout, table: str, position: int) -> NDArray[np.float32]:
    offset, shape = next((at, shape) for name, shape, at in layout.arrays() if name == table)
    data = file.read(offset + 4 * shape[1] * position, 4 * shape[1], table)
    return np.frombuffer(data, dtype="<f4")


def _starts_unturned(file: MappedFile, layout: Layout) -> bool:
    """Whether the tables begin with the rotation of position 0: cosines of 1, sines of 0."""
    cosines, sines = (_row(file, layout, table, 0) for table in _TABLES)
    return bool((cosines == 1.0).all() and (sines == 0.0).all())


def _theta(file: MappedFile, layout: Layout) -> float:
    """The base that the rotations of position 1 have. Raises UnsupportedError for another one."""
    if layout.header.seq_len < 2:
        return _THETAS[0]
    half = layout.header.dim // layout.header.n_heads // 2
    cosines, sines = (_row(file, layout, table, 1) for table in _TABLES)
    for theta in _THETAS:
        angles = theta ** (-np.arange(half) / half)
        if np.allclose(cosines, np.cos(angles), atol=1e-3) and np.allclose(
            sines, np.sin(angles), atol=1e-3
        ):
            return theta
    raise UnsupportedError(
        f"{file.where}: the table of rotations has none of the bases "
        f"{', '.join(f'{theta:g}' for theta in _THETAS)}"
    )


def _config(file: MappedFile, layout: Layout, name: str) -> ModelConfig:
    header = layout.header
    epsilon = 1e-5
    if layout.is_new:
        (epsilon,) = file.unpack("<f", HEADER_BYTES, "epsilon")
        if not math.isfinite(epsilon):
            raise FormatError(f"{file.where}: the epsilon at offset {HEADER_BYTES} is {epsilon}")
        epsilon = float(f"{epsilon:.7g}")  # as it was before it became f32
    return build(
        file.where, arch="llama", dim=header.dim, ffn_dim=header.ffn_dim,
        n_layers=header.n_layers, n_heads=header.n_heads, n_kv_heads=layout.n_kv_heads,
        head_dim=header.dim // header.n_heads, vocab_size=header.vocab_size,
        max_seq_len=header.seq_len, norm_eps=epsilon, rope_theta=_theta(file, layout),
        rope_style="half", tied_head=False, bos_token_id=1 if header.vocab_size > 1 else None,
        eos_token_ids=(2,) if header.vocab_size > 2 else (), add_bos=True, name=name,
    )  # fmt: skip


def _tensors(file: MappedFile, layout: Layout) -> Iterator[tuple[str, View]]:
    for name, shape, at in layout.arrays():
        if name in _TABLES:
            continue
        origin = f"{file.where}:{in_file(LLAMA2C, name)}@{at:#x}"
        if layout.is_packed(name, shape):
            yield name, _packed(file, layout, shape, at, origin)
        else:
            yield name, TensorView(file.slice(at, F32.n_bytes(shape), name), F32, shape, origin)


def _packed(
    file: MappedFile, layout: Layout, shape: tuple[int, ...], at: int, origin: str
) -> PackedView:
    arrays: list[NDArray[np.uint32]] = []
    for part in layout.parts(shape):
        n_bytes = 4 * math.prod(part)
        arrays.append(np.frombuffer(file.slice(at, n_bytes, origin), dtype="<u4").reshape(part))
        at += n_bytes
    words, zeros, scales = arrays[0], arrays[1], arrays[2].view(np.float32)
    group_of = (np.arange(shape[1]) // layout.group_size).astype(np.int32)
    return PackedView(
        words=words, zeros=zeros, scales=scales, group_of=group_of, bits=4, layout="rows",
        zero_offset=1, dtype=packed_dtype(4, group_of, scales), shape=shape, origin=origin,
        stored_order=_order(arrays[3].view(np.int32), origin) if layout.is_new else None,
    )  # fmt: skip


def _order(order: NDArray[np.int32], origin: str) -> NDArray[np.int32] | None:
    """The inputs that the columns are for. Raises FormatError unless each is there once."""
    natural = np.arange(order.size)
    if not np.array_equal(np.sort(order), natural):
        raise FormatError(f"{origin}: its order of inputs does not name each of them once")
    return None if np.array_equal(order, natural) else order.astype(np.int32)
