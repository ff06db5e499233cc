"""CpuBackend: the Backend protocol over the compiled kernels."""

from __future__ import annotations

import logging
import os
import weakref
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from rllama._kernels import core
from rllama.backend import KVSpec, ScratchSpec
from rllama.dtypes import DTYPES, F16, F32
from rllama.errors import ConfigError, UnsupportedError
from rllama.making import quantized, unpacked
from rllama.packed import PackedView
from rllama.tensor import MadeView, RecastView, TensorView, View
from rllama.threads import check_threads, openmp_runtimes, usable_threads

log = logging.getLogger(__name__)

_FORMAT_NUMBER = {name: i for i, (name, _, _) in enumerate(core.formats())}


def _check_registries() -> None:
    """dtypes.py and the compiled kernels must know the same formats."""
    ours = [(d.name, d.block_len, d.block_bytes) for d in DTYPES]
    if ours != core.formats():
        raise ImportError(f"compiled kernels are of another version: {core.formats()} != {ours}")


_check_registries()


@dataclass(slots=True, eq=False)
class CpuScratch:
    """The activation buffers of a step of some number of tokens; see backend.Scratch."""

    x: core.Buf
    h: core.Buf
    q: core.Buf
    k: core.Buf
    v: core.Buf
    a: core.Buf
    gate: core.Buf
    up: core.Buf


class CpuScratchPool:
    """Buffers for the largest step so far; smaller steps get views of them."""

    def __init__(self, spec: ScratchSpec) -> None:
        d, q, kv, f = spec.dim, spec.q_dim, spec.kv_dim, spec.ffn_dim
        # Widths and places: gate and up lie where q to a do, see backend.Scratch.
        self._widths = (d, d, q, kv, kv, q, f, f)
        b = 2 * d  # where the branches begin
        self._places = (0, d, b, b + q, b + q + kv, b + q + 2 * kv, b, b + f)
        self._width = b + max(2 * q + 2 * kv, 2 * f)
        self._max_tokens = spec.max_tokens
        self._whole: CpuScratch | None = None
        self._cut: dict[int, CpuScratch] = {}

    def take(self, n_tokens: int) -> CpuScratch:
        cut = self._cut.get(n_tokens)
        if cut is None:
            cut = self._make(n_tokens)
        return cut

    def _make(self, n_tokens: int) -> CpuScratch:
        whole = self._whole
        if whole is None or whole.x.n_rows < n_tokens:
            size = n_tokens if n_tokens > self._max_tokens else min(
                self._max_tokens, max(16, 1 << (n_tokens - 1).bit_length())
            )  # fmt: skip
            memory = np.zeros(size * self._width, dtype=np.float32)
            whole = CpuScratch(*(
                core.Buf(memory[size * place : size * (place + width)].reshape(size, width))
                for place, width in zip(self._places, self._widths, strict=True)
            ))  # fmt: skip
            self._whole = whole
            self._cut.clear()
        if len(self._cut) > 64:
            self._cut.clear()
        cut = CpuScratch(*(getattr(whole, name).first(n_tokens) for name in CpuScratch.__slots__))
        self._cut[n_tokens] = cut
        return cut


class CpuBackend(core.Context):
    """Kernels of one ISA level on some threads; ops are inherited from the compiled Context.

    Notes:   `isa` overrides RLLAMA_ISA, which overrides the best level of this CPU; weights stay
             where they lie, so `place` copies only what `f16` asks it to convert
    Raises:  ConfigError for a level this CPU or build lacks
    """

    name = "cpu"

    def __new__(cls, isa: str | None = None, n_threads: int | None = None) -> CpuBackend:
        chosen = isa or os.environ.get("RLLAMA_ISA") or None
        n = _default_threads() if n_threads is None else check_threads(n_threads)
        n = 1 if _forks.in_child else n  # starting a team after a fork may hang
        self = super().__new__(cls, isa=chosen, n_threads=n)
        if self.n_threads < n:
            log.warning("the system starts only %d of %d threads", self.n_threads, n)
        if len(runtimes := openmp_runtimes()) > 1:
            log.info("more than one OpenMP library in this process: %s", ", ".join(runtimes))
        _forks.watch(self)
        return self

    def __init__(self, isa: str | None = None, n_threads: int | None = None) -> None:
        self._head_rows: core.Buf | None = None
        self._logits: core.Buf | None = None
        self._orders = _Orders()

    def place(self, view: View, *, f16: bool = False) -> core.AnyWeight:
        """A weight over the view's own bytes, as `place_whole` has it; pieces stay pieces."""
        if isinstance(view, PackedView):
            view = unpacked(view, self)
        if isinstance(view, RecastView):
            view = quantized(view, self)
        if isinstance(view, MadeView):
            view = view.made()
        if isinstance(view, TensorView):
            return self.place_whole(view, f16=f16)
        parts = tuple(self.place_whole(part, f16=f16) for part in view.parts)
        return core.Joined(parts, view.axis, view.origin)

    def place_whole(self, view: TensorView, *, f16: bool = False) -> core.Weight:
        """A weight over the view's own bytes; F32 and BF16 are converted if f16 is asked for."""
        shape = view.shape if len(view.shape) == 2 else (1, *view.shape)
        if len(shape) != 2:
            raise UnsupportedError(f"{view.origin}: a weight has one or two axes, not {view.shape}")
        data, dtype = view.data, view.dtype
        if f16 and len(view.shape) == 2 and dtype.is_float and dtype is not F16:
            data, dtype = _as_f16(view), F16
        number = _FORMAT_NUMBER.get(dtype.name)
        if number is None:
            raise UnsupportedError(f"{view.origin}: no {dtype.name} kernel")
        raw = np.frombuffer(data, dtype=np.uint8)
        order = self._orders.one_of(view.column_order)
        return core.Weight(raw, number, shape[0], shape[1], view.origin, order)

    def place_norm(self, view: View, offset: float = 0.0) -> core.Weight:
        """A vector as one aligned F32 row, converted where the file has another type."""
        values = np.ascontiguousarray(view.to_f32())
        if offset:
            values += np.float32(offset)
        return core.Weight(
            values.view(np.uint8).reshape(-1), _FORMAT_NUMBER[F32.name], 1, values.size, view.origin
        )

    def rope_table(
        self,
        max_seq_len: int,
        inv_freq: NDArray[np.float64],
        factor: float = 1.0,
        head_dim: int = 0,
    ) -> core.RopeTable:
        values = np.ascontiguousarray(inv_freq, dtype=np.float64)
        return core.RopeTable(values, max_seq_len, factor, head_dim)

    def experts(
        self,
        router: core.AnyWeight,
        gate: tuple[core.AnyWeight, ...],
        up: tuple[core.AnyWeight, ...],
        down: tuple[core.AnyWeight, ...],
        *,
        n_used: int,
        normalise: bool,
        activation: str = "silu",
        router_bias: core.Weight | None = None,
        gate_bias: tuple[core.Weight, ...] = (),
        up_bias: tuple[core.Weight, ...] = (),
        down_bias: tuple[core.Weight, ...] = (),
    ) -> core.Experts:
        return core.Experts(
            _whole((router,))[0],
            _whole(gate),
            _whole(up),
            _whole(down),
            n_used=n_used,
            normalise=normalise,
            activation=activation,
            router_bias=router_bias,
            gate_bias=gate_bias,
            up_bias=up_bias,
            down_bias=down_bias,
        )

    def scratch(self, spec: ScratchSpec) -> CpuScratchPool:
        return CpuScratchPool(spec)

    def kv_store(self, spec: KVSpec) -> core.KVStore:
        if spec.page_len != core.PAGE_LEN:
            raise ConfigError(f"the CPU cache has pages of {core.PAGE_LEN}, not {spec.page_len}")
        groups = [(group.layers, group.n_pages) for group in spec.groups]
        return core.KVStore(groups, spec.n_kv_heads, spec.head_dim, spec.dtype)

    def logits(
        self,
        x: core.Buf,
        step: core.Step,
        head: core.AnyWeight,
        *,
        scale: float = 1.0,
        softcap: float = 0.0,
    ) -> NDArray[np.float32]:
        """[R, V] f32 of the rows that the step wants; valid until the next call."""
        n_rows = step.n_logits
        rows, out = self._head_rows, self._logits
        if (
            rows is None
            or out is None
            or (rows.n_rows, rows.n_cols) != (n_rows, x.n_cols)
            or (out.n_cols != head.shape[0])
        ):
            rows = self._head_rows = core.Buf.zeros(n_rows, x.n_cols)
            out = self._logits = core.Buf.zeros(n_rows, head.shape[0])
        if n_rows:
            self.gather(x, step, rows)
            self.matmul(rows, (head,), (out,))
            if softcap:
                self.softcap(out, scale, softcap)
            elif scale != 1.0:
                self.scale(out, scale)
        array: NDArray[np.float32] = out.array
        return array

    def close(self) -> None:
        self._head_rows = self._logits = None


class _Orders:
    """Column orders, each kept once: weights with the same one share quantised activations."""

    def __init__(self) -> None:
        self._known: weakref.WeakValueDictionary[bytes, NDArray[np.int32]] = (
            weakref.WeakValueDictionary()
        )

    def one_of(self, order: NDArray[np.int32] | None) -> NDArray[np.int32] | None:
        """The array that stands for all equal ones; None for no order and for the natural one."""
        if order is None or np.array_equal(order, np.arange(order.size)):
            return None
        own = np.ascontiguousarray(order, dtype=np.int32)
        return self._known.setdefault(sha256(own.tobytes()).digest(), own)


def _whole(weights: tuple[core.AnyWeight, ...]) -> tuple[core.Weight, ...]:
    """The weights, none of which may lie in pieces. Raises UnsupportedError."""
    for weight in weights:
        if isinstance(weight, core.Joined):
            raise UnsupportedError(f"{weight.origin}: an expert whose matrix lies in pieces")
    return tuple(weight for weight in weights if isinstance(weight, core.Weight))


def _as_f16(view: TensorView) -> memoryview:
    """The values as F16, a million at a time, so that the peak is the result plus little."""
    n = view.n_bytes // view.dtype.block_bytes
    out = np.empty(n, dtype=np.float16)
    step = 1 << 20
    width = view.dtype.block_bytes
    for first in range(0, n, step):
        last = min(n, first + step)
        piece = TensorView(view.data[first * width : last * width], view.dtype, (last - first,),
                           view.origin)  # fmt: skip
        with np.errstate(over="ignore"):
            out[first:last] = piece.to_f32()
    return out.view(np.uint8).data


def _default_threads() -> int:
    plan = usable_threads()
    if plan.note:
        log.warning(plan.note)
    return plan.n_threads


class _Forks:
    """What a fork has to change: the threads library does not survive it, used by whomever."""

    def __init__(self) -> None:
        self.live: weakref.WeakSet[CpuBackend] = weakref.WeakSet()
        self.any_made = False
        self.in_child = False

    def watch(self, backend: CpuBackend) -> None:
        self.any_made = True
        self.live.add(backend)
        if self.in_child:
            backend.set_serial()

    def after_in_child(self) -> None:
        if not self.any_made:
            return
        self.in_child = True
        for backend in list(self.live):
            backend.set_serial()
        log.warning("after fork the kernels of this process run in one thread")


_forks = _Forks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forks.after_in_child)
