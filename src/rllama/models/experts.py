"""Llama whose feed-forward is a mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rllama.backend import Experts, Scratch
from rllama.models.base import Layer, OnProgress
from rllama.models.kin import HEAD_NORMS
from rllama.models.llama import Llama
from rllama.models.table import PER_EXPERT, PER_LAYER, T
from rllama.tensor import View

_EXPERTS = PER_LAYER + PER_EXPERT
_DENSE = ("w_gate_up", "w_gate", "w_up", "w_down", "b_gate", "b_up", "b_down")
_ATTENTION_BIASES = frozenset(PER_LAYER + name for name in ("bq", "bk", "bv", "bo"))


class Mixtral(Llama):
    """Every layer has many feed-forwards, of which a router chooses a few for each token.

    Source:  arXiv 2401.04088
    """

    TENSORS = (
        *(row for row in Llama.TENSORS if row.name.removeprefix(PER_LAYER) not in _DENSE),
        T("layers.{i}.router", "E, D"),
        T(_EXPERTS + "w_gate", "X, D"),
        T(_EXPERTS + "w_up", "X, D"),
        T(_EXPERTS + "w_down", "D, X"),
    )

    def _place(
        self, tensors: Mapping[str, View], *, f16: bool, on_progress: OnProgress | None
    ) -> None:
        super()._place(tensors, f16=f16, on_progress=on_progress)
        for layer in self.layers:
            layer.experts = self._experts(layer)

    def _experts(self, layer: Layer) -> Experts:
        """The experts of a layer and their router, as one."""
        cfg, of = self.cfg, layer.of_experts
        return self.backend.experts(
            layer.router,
            *(tuple(of[name]) for name in ("w_gate", "w_up", "w_down")),
            n_used=cfg.n_experts_used,
            normalise=cfg.normalise_experts,
            activation=cfg.activation,
            router_bias=layer.b_router,
            gate_bias=tuple(of.get("b_gate", ())),
            up_bias=tuple(of.get("b_up", ())),
            down_bias=tuple(of.get("b_down", ())),
        )

    def ffn(self, w: Layer, s: Scratch) -> None:
        """Add the chosen experts of one layer to the residual stream `s.x`."""
        self.backend.moe(self.normed(w.ffn_norm, s), w.experts, s.x)


class Qwen3Moe(Mixtral):
    """Mixtral whose query and key heads are each normed before they turn.

    Source:  arXiv 2505.09388
    """

    TENSORS = (*Mixtral.TENSORS, *HEAD_NORMS)


class GptOss(Mixtral):
    """Mixtral with biases everywhere and a sink for each query head.

    Source:  arXiv 2508.10925
    """

    TENSORS = (
        *(
            replace(row, optional=row.optional and row.name not in _ATTENTION_BIASES)
            for row in Mixtral.TENSORS
        ),
        T("layers.{i}.sinks", "H"),
        T("layers.{i}.b_router", "E"),
        T(_EXPERTS + "b_gate", "X"),
        T(_EXPERTS + "b_up", "X"),
        T(_EXPERTS + "b_down", "D"),
    )
