"""The packed matrices of a safetensors checkpoint: `*.qweight` and what lies beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllama.dtypes import BF16
from rllama.errors import ConfigError, FormatError
from rllama.formats import awq, gptq
from rllama.formats.files import printable
from rllama.formats.mapped_file import ByteSource
from rllama.formats.quant_config import QuantScheme
from rllama.formats.safetensors import Entry
from rllama.packed import PackedView

log = logging.getLogger(__name__)

_SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
_MAX_BIAS_BYTES = 1 << 20
_TYPES = {"I32": "<u4", "F16": "<f2", "BF16": "<u2", "F32": "<f4"}


@dataclass(slots=True)
class PackedLinear:
    """The tensors of one packed matrix, by the last part of their names.

    Notes: a bias is no part of it; it goes the way of all named tensors
    """

    name: str
    pieces: dict[str, tuple[ByteSource, Entry]] = field(default_factory=dict)

    @property
    def where(self) -> str:
        file = next(iter(self.pieces.values()))[0]
        return f"{file.where}: {printable(self.name)}"

    @property
    def origin(self) -> str:
        file, entry = self.pieces["qweight"]
        return f"{file.where}:{printable(self.name)}.qweight@{entry.offset:#x}"

    def shape(self, suffix: str) -> tuple[int, ...]:
        """The shape of a tensor that must be there. Raises FormatError."""
        if suffix not in self.pieces:
            raise FormatError(f"{self.where}.{suffix} is missing; it lies beside "
                              f"{', '.join(sorted(self.pieces))}")  # fmt: skip
        return self.pieces[suffix][1].shape

    def words(self, suffix: str, shape: tuple[int, ...]) -> NDArray[np.uint32]:
        """A tensor of whole numbers, which must have this shape. Raises FormatError."""
        values: NDArray[np.uint32] = self._array(suffix, ("I32",), shape)
        return values

    def floats(
        self, suffix: str, shape: tuple[int, ...]
    ) -> NDArray[np.floating] | NDArray[np.uint16]:
        """The same for scales: f16, f32, or the bits of bf16 values as u16."""
        values: NDArray[np.floating] = self._array(suffix, ("F16", "BF16", "F32"), shape)
        return values

    def _array(self, suffix: str, types: tuple[str, ...], shape: tuple[int, ...]) -> NDArray[Any]:
        found = self.shape(suffix)
        file, entry = self.pieces[suffix]
        if entry.dtype not in types or found != shape:
            raise FormatError(
                f"{self.where}.{suffix}: {entry.dtype} {list(found)}, not {' or '.join(types)} "
                f"{list(shape)}"
            )
        data = file.slice(entry.offset, entry.n_bytes, f"{self.where}.{suffix}")
        return np.frombuffer(data, dtype=_TYPES[entry.dtype]).reshape(shape)


def packed_linears(
    files: Iterable[tuple[ByteSource, dict[str, Entry]]], scheme: QuantScheme | None, where: str
) -> tuple[dict[str, PackedView], set[str]]:
    """Every packed matrix under the name `P.weight`, and the names of the tensors it is made of.

    Notes:   packers give matrices that have no bias one of zeros; those count as taken
    Raises:  FormatError for parts that are missing or do not fit; ConfigError without a scheme
    """
    linears, taken = _gather(files)
    if not linears:
        return {}, set()
    if scheme is None:
        raise ConfigError(
            f"{where}: {next(iter(linears))}.qweight is packed, but neither config.json "
            "(quantization_config) nor quantize_config.json says how"
        )
    reader = gptq.view if scheme.method == "gptq" else awq.view
    views = {f"{name}.weight": reader(linear, scheme) for name, linear in linears.items()}
    n_floats = sum(view.dtype is BF16 for view in views.values())
    if n_floats:
        log.warning(
            "%s: %d of %d packed matrices fit no blocks of 32 inputs and run as BF16, which takes "
            "more memory", where, n_floats, len(views),
        )  # fmt: skip
    return views, taken


def _gather(
    files: Iterable[tuple[ByteSource, dict[str, Entry]]],
) -> tuple[dict[str, PackedLinear], set[str]]:
    linears: dict[str, PackedLinear] = {}
    taken: set[str] = set()
    plain: set[str] = set()
    biases: dict[str, tuple[ByteSource, Entry]] = {}
    for file, entries in files:
        for name, entry in entries.items():
            prefix, _, suffix = name.rpartition(".")
            if suffix in _SUFFIXES:
                linears.setdefault(prefix, PackedLinear(prefix)).pieces[suffix] = (file, entry)
                taken.add(name)
            elif suffix == "weight":
                plain.add(prefix)
            elif suffix == "bias":
                biases[prefix] = (file, entry)
    for name in linears.keys() & plain:
        raise FormatError(f"{linears[name].where}: both weight and packed tensors are here")
    taken |= {f"{name}.bias" for name in linears.keys() & biases.keys() if _is_zero(*biases[name])}
    return linears, taken


def _is_zero(file: ByteSource, entry: Entry) -> bool:
    return entry.n_bytes <= _MAX_BIAS_BYTES and not any(
        file.read(entry.offset, entry.n_bytes, "bias")
    )
