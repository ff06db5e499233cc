"""Stacks of experts, as files hold them, taken apart: one matrix for each expert.

A stack [E, N, K] of a plain type is cut where it lies. Two kinds of gpt-oss are put together when
they are placed: floats that lie turned round, [E, K, N], with gate and up in turns; and MXFP4 as
safetensors hold it, scales apart from the nibbles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rllama.dtypes import DType, dtype_by_name
from rllama.errors import FormatError, UnsupportedError
from rllama.formats.mapped_file import ByteSource
from rllama.formats.safetensors import Entry
from rllama.tensor import MadeView, TensorView, View

MAX_EXPERTS = 1024

_U8 = DType("U8", 1, 1)
_STACK = re.compile(r"(layers\.[0-9]+\.experts\.)(([wb])_[a-z_]+?)(_blocks|_scales)?", re.ASCII)
_PACKED = ("_blocks", "_scales")
_HALVES = {"gate_up": ("gate", "up")}
_BLOCK = 32

Bytes = NDArray[np.uint8]


def packed_views(
    file: ByteSource, entries: Mapping[str, Entry], wanted: dict[str, str]
) -> dict[str, TensorView]:
    """The bytes of packed experts among the tensors in `wanted`, which are taken out of it."""
    found: dict[str, TensorView] = {}
    for name, ours in list(wanted.items()):
        if not ours.endswith(_PACKED):
            continue
        entry = entries[name]
        origin = f"{file.where}:{name}@{entry.offset:#x}"
        if entry.dtype != "U8":
            raise UnsupportedError(f"{origin}: {entry.dtype}; packed experts are U8")
        data = file.slice(entry.offset, entry.n_bytes, origin)
        found[ours] = TensorView(data, _U8, entry.shape, origin)
        del wanted[name]
    return found


def split(found: Mapping[str, View], *, turned: bool = False) -> dict[str, View]:
    """All tensors, stacks of experts as one matrix or vector for each expert.

    Notes:   turned: float stacks lie as gpt-oss has them, and so do all biases of gate and up
    Raises:  FormatError, UnsupportedError for a stack that is none
    """
    result: dict[str, View] = {}
    stored = {name: view for name, view in found.items() if isinstance(view, TensorView)}
    for name, view in found.items():
        if not isinstance(view, TensorView):
            result[name] = view
            continue
        match = _STACK.fullmatch(name)
        if match is None:
            result[name] = view
            continue
        prefix, short, kind, packed = match.groups()
        _check_stack(view, 4 if packed == "_blocks" else 2 if kind == "b" else 3)
        if packed == "_scales":
            if f"{prefix}{short}_blocks" not in stored:
                raise FormatError(f"{view.origin}: scales without blocks")
            continue
        if packed:
            parts = _mxfp4(view, stored.get(f"{prefix}{short}_scales"), short)
        elif turned and (kind == "w" or short == "b_gate_up"):
            parts = _turned(view, short)
        else:
            parts = _plain(view, short)
        for part, views in parts.items():
            for e, one in enumerate(views):
                result[f"{prefix}{e}.{part}"] = one
    return result


def _check_stack(view: TensorView, n_axes: int) -> None:
    if len(view.shape) != n_axes or 0 in view.shape:
        raise FormatError(f"{view.origin}: the shape {list(view.shape)} is no stack of experts")
    if view.shape[0] > MAX_EXPERTS:
        raise UnsupportedError(f"{view.origin}: {view.shape[0]} experts; {MAX_EXPERTS} is the most")


def _names(short: str) -> tuple[str, ...]:
    """What a stack holds: "w_gate_up" has two matrices for each expert."""
    kind, _, which = short.partition("_")
    return tuple(f"{kind}_{part}" for part in _HALVES.get(which, (which,)))


def _halves(view: TensorView, n: int, axis: int) -> int:
    if view.shape[axis] % n:
        raise FormatError(f"{view.origin}: {view.shape[axis]} rows of gate and up are no even "
                          "number")  # fmt: skip
    return view.shape[axis] // n


def _plain(view: TensorView, short: str) -> dict[str, list[View]]:
    """Stacks that lie as they run: rows first, gate before up."""
    names = _names(short)
    height = _halves(view, len(names), 1)
    width = view.n_bytes // view.shape[0] // len(names)
    shape = (height, *view.shape[2:])
    parts: dict[str, list[View]] = {name: [] for name in names}
    for i in range(view.shape[0] * len(names)):
        data = view.data[i * width : (i + 1) * width]
        origin = f"{view.origin}[{i // len(names)}]"
        parts[names[i % len(names)]].append(TensorView(data, view.dtype, shape, origin))
    return parts


def _each(
    view: TensorView, dtype: DType, shape: tuple[int, ...], make: Callable[[int], Bytes]
) -> list[View]:
    return [
        MadeView(dtype, shape, f"{view.origin}[{e}]", partial(make, e))
        for e in range(view.shape[0])
    ]


def _turned(view: TensorView, short: str) -> dict[str, list[View]]:
    """Floats [E, K, N], of which gate and up take columns in turns; biases [E, N] likewise."""
    if not view.dtype.is_float:
        raise UnsupportedError(f"{view.origin}: turned experts of type {view.dtype.name}")
    names = _names(short)
    values = np.frombuffer(view.data, dtype=f"<u{view.dtype.block_bytes}").reshape(view.shape)
    height = _halves(view, len(names), -1)

    def make(first: int, e: int) -> Bytes:
        return np.ascontiguousarray(values[e, ..., first :: len(names)].T).view(np.uint8)

    shape = (height, *view.shape[1:-1])
    return {
        name: _each(view, view.dtype, shape, partial(make, first))
        for first, name in enumerate(names)
    }


def _mxfp4(blocks: TensorView, scales: TensorView | None, short: str) -> dict[str, list[View]]:
    """Nibbles [E, N, K/32, 16] and scales [E, N, K/32], of which gate and up take rows in turns."""
    if scales is None or scales.shape != blocks.shape[:3] or blocks.shape[3] != _BLOCK // 2:
        there = "missing" if scales is None else f"{list(scales.shape)}"
        raise FormatError(f"{blocks.origin}: blocks {list(blocks.shape)}, scales {there}")
    names = _names(short)
    nibbles = np.frombuffer(blocks.data, dtype=np.uint8).reshape(blocks.shape)
    exponents = np.frombuffer(scales.data, dtype=np.uint8).reshape(scales.shape)
    height, n_cols = _halves(blocks, len(names), 1), blocks.shape[2] * _BLOCK

    def make(first: int, e: int) -> Bytes:
        rows = slice(first, None, len(names))
        if (exponents[e, rows] == 255).any():
            raise FormatError(f"{scales.origin}: a scale of expert {e} is not a number")
        return mxfp4_blocks(nibbles[e, rows], exponents[e, rows])

    return {
        name: _each(blocks, dtype_by_name("MXFP4"), (height, n_cols), partial(make, first))
        for first, name in enumerate(names)
    }


def mxfp4_blocks(nibbles: Bytes, exponents: Bytes) -> Bytes:
    """Blocks of 17 bytes: the scale, then value j beside value j + 16.

    Shapes:  nibbles [N, B, 16], value 2j in the low half of byte j; exponents [N, B];
             result [N, B, 17]
    """
    out = np.empty((*exponents.shape, 17), dtype=np.uint8)
    out[..., 0] = exponents
    first, second = nibbles[..., :8], nibbles[..., 8:]
    out[..., 1::2] = (first & 15) | (second << 4)
    out[..., 2::2] = (first >> 4) | (second & 0xF0)
    return out
