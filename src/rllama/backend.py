"""The seam between models and hardware: what a backend can do, in a dozen coarse ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rllama.batch import Batch
from rllama.config import Activation, RopeStyle
from rllama.errors import UnsupportedError
from rllama.kv_groups import KVGroup
from rllama.tensor import View

Buf = Any  # activations [T, width] f32, opaque to models: a core.Buf here, a device array there
Weight = Any  # a placed weight [N, K], opaque to models
RopeTable = Any  # rotations of every position, as rope_table made them
Cache = Any  # the backend's own KVStore, as its kv_store made it
AttendSpec = Any  # how a layer attends, made once by attend_spec
Experts = Any  # the experts of a layer and their router, as `experts` made them
Step = Any  # a Batch made ready for the device: token ids, positions, page table


@dataclass(frozen=True, slots=True)
class ScratchSpec:
    """Widths of the activation buffers of one step, per token.

    Units: values of f32 per token
    """

    dim: int
    q_dim: int
    kv_dim: int
    ffn_dim: int
    max_tokens: int


class Scratch(Protocol):
    """The activation buffers of a step, cut to its number of tokens.

    Notes: `gate` and `up` may lie where `q` to `a` do: a branch must have read its buffers before
           the next one writes its own
    """

    x: Buf  # [T, D] residual stream
    h: Buf  # [T, D] normed
    q: Buf  # [T, H*d]
    k: Buf  # [T, G*d]
    v: Buf  # [T, G*d]
    a: Buf  # [T, H*d] attention output
    gate: Buf  # [T, F]
    up: Buf  # [T, F]


class ScratchPool(Protocol):
    """All scratch of a model, allocated once."""

    def take(self, n_tokens: int) -> Scratch: ...


@dataclass(frozen=True, slots=True)
class KVSpec:
    """Size and type of a paged cache; every layer is in one of the groups.

    Units: page_len positions; dtype "f32", "f16" or "q8_0"
    """

    groups: tuple[KVGroup, ...]
    n_kv_heads: int
    head_dim: int
    page_len: int
    dtype: str


class KVStore(Protocol):
    """Keys and values of every layer, in pages. Which page belongs to whom is not its concern."""

    def close(self) -> None: ...


class Backend(Protocol):
    """Places weights and runs ops. Models know nothing else of the hardware.

    Notes:   `place_norm` makes one F32 row of a vector (a norm, a bias), raised by `offset`;
             `rope_table` multiplies cosines and sines by `factor`, and turns the beginning of
             heads that are wider (`head_dim`) than its pairs; `rms_norm` with a weight
             narrower than x norms each head of its width on its own; `grow`: every row of x is
             multiplied by 1 + growth * ln(1 + position // length); `add`: into += factor * x;
             `add_bias`: every row of x += bias; `glu`: gate = activation(gate) * up;
             `experts` takes one gate, up and down per expert, and biases of all of them or none;
             `moe`: into += the outputs of the `n_used` experts whose router logits are largest (the
             lower id where they are equal), added in the order of their ids, each times the softmax
             of its logit over the chosen ones (`normalise`) or over all;
             `logits` gives scale * z, or softcap * tanh(scale * z / softcap) if there is a cap
    """

    name: str

    @property
    def isa(self) -> str: ...
    @property
    def n_threads(self) -> int: ...
    def place(self, view: View, *, f16: bool = False) -> Weight: ...
    def place_norm(self, view: View, offset: float = 0.0) -> Weight: ...
    def rope_table(
        self,
        max_seq_len: int,
        inv_freq: NDArray[np.float64],
        factor: float = 1.0,
        head_dim: int = 0,
    ) -> RopeTable: ...
    def scratch(self, spec: ScratchSpec) -> ScratchPool: ...
    def kv_store(self, spec: KVSpec) -> KVStore: ...
    def begin(self, batch: Batch) -> Step: ...
    def embed(self, step: Step, table: Weight, out: Buf) -> None: ...
    def rms_norm(self, x: Buf, weight: Weight, eps: float, out: Buf) -> None: ...
    def matmul(self, x: Buf, weights: tuple[Weight, ...], out: tuple[Buf, ...]) -> None: ...
    def matmul_add(self, x: Buf, weight: Weight, into: Buf) -> None: ...
    def rope(self, q: Buf, k: Buf, step: Step, table: RopeTable, style: RopeStyle) -> None: ...
    def attend_spec(
        self,
        layer: int,
        *,
        scale: float,
        softcap: float = 0.0,
        window: int = 0,
        sinks: Weight | None = None,
    ) -> AttendSpec: ...
    def attend(
        self, q: Buf, k: Buf, v: Buf, kv: Cache, spec: AttendSpec, step: Step, out: Buf
    ) -> None: ...
    def glu(self, gate: Buf, up: Buf, activation: Activation = "silu") -> None: ...
    def experts(
        self,
        router: Weight,
        gate: tuple[Weight, ...],
        up: tuple[Weight, ...],
        down: tuple[Weight, ...],
        *,
        n_used: int,
        normalise: bool,
        activation: Activation = "silu",
        router_bias: Weight | None = None,
        gate_bias: tuple[Weight, ...] = (),
        up_bias: tuple[Weight, ...] = (),
        down_bias: tuple[Weight, ...] = (),
    ) -> Experts: ...
    def moe(self, x: Buf, experts: Experts, into: Buf) -> None: ...
    def grow(self, x: Buf, step: Step, growth: float, length: int) -> None: ...
    def scale(self, x: Buf, factor: float) -> None: ...
    def add(self, x: Buf, into: Buf, factor: float = 1.0) -> None: ...
    def add_bias(self, x: Buf, bias: Weight) -> None: ...
    def logits(
        self, x: Buf, step: Step, head: Weight, *, scale: float = 1.0, softcap: float = 0.0
    ) -> NDArray[np.float32]: ...
    def close(self) -> None: ...


def get_backend(
    name: str = "cpu", *, isa: str | None = None, n_threads: int | None = None
) -> Backend:
    """Make a backend by name. Raises UnsupportedError, ConfigError."""
    if name == "cpu":
        from rllama.cpu import CpuBackend

        return CpuBackend(isa=isa, n_threads=n_threads)
    raise UnsupportedError(f"unknown backend {name!r}; known: cpu")
