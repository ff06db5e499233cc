"""The one-page model: Llama 1, 2 and 3, and everything shaped like them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rllama.backend import Buf, KVStore, Scratch, Step, Weight
from rllama.batch import Batch
from rllama.models.base import Decoder, Layer
from rllama.models.table import PER_LAYER, T


def _each(*names: str) -> tuple[str, ...]:
    return tuple(PER_LAYER + name for name in names)


class Llama(Decoder):
    """RMSNorm, rotary attention with grouped heads, a gated feed-forward.

    Notes:   the kin are subclasses that name more tensors or fewer; everything else that differs
             is a number of the config, and what a model has not costs it nothing
    Source:  arXiv 2302.13971, 2307.09288, 2407.21783
    """

    TENSORS: ClassVar[tuple[T, ...]] = (
        T("embed", "V, D"),
        T("layers.{i}.attn_norm", "D"),
        T("layers.{i}.wqkv", "H*d + G*d + G*d, D", parts=_each("wq", "wk", "wv")),
        T("layers.{i}.wq", "H*d, D"),
        T("layers.{i}.wk", "G*d, D"),
        T("layers.{i}.wv", "G*d, D"),
        T("layers.{i}.bq", "H*d", optional=True),
        T("layers.{i}.bk", "G*d", optional=True),
        T("layers.{i}.bv", "G*d", optional=True),
        T("layers.{i}.wo", "D, H*d"),
        T("layers.{i}.bo", "D", optional=True),
        T("layers.{i}.ffn_norm", "D"),
        T("layers.{i}.w_gate_up", "F + F, D", parts=_each("w_gate", "w_up")),
        T("layers.{i}.w_gate", "F, D"),
        T("layers.{i}.w_up", "F, D"),
        T("layers.{i}.b_gate", "F", optional=True),
        T("layers.{i}.b_up", "F", optional=True),
        T("layers.{i}.w_down", "D, F"),
        T("layers.{i}.b_down", "D", optional=True),
        T("final_norm", "D"),
        T("lm_head", "V, D"),
    )

    def forward(self, batch: Batch, kv: KVStore) -> NDArray[np.float32]:
        """Compute one step; the logits of `batch.logit_rows`.

        Shapes:  result [R, V] f32
        """
        be, s, cfg = self.backend, self.scratch.take(batch.n_tokens), self.cfg
        step = be.begin(batch)
        be.embed(step, self.embed, s.x)  # [T, D]
        if cfg.embed_scale != 1:
            be.scale(s.x, cfg.embed_scale)
        for w in self.layers:
            self.attention(w, s, kv, step)
            self.ffn(w, s)
        be.rms_norm(s.x, self.final_norm, cfg.norm_eps, s.h)
        return be.logits(  # [R, V]
            s.h, step, self.lm_head, scale=cfg.logit_scale, softcap=cfg.logit_softcap
        )

    def attention(self, w: Layer, s: Scratch, kv: KVStore, step: Step) -> None:
        """Add what one layer attends to, to the residual stream `s.x`."""
        be, eps = self.backend, self.cfg.norm_eps
        h = self.normed(w.attn_norm, s)  # [T, D]
        be.matmul(h, (w.wq, w.wk, w.wv), (s.q, s.k, s.v))  # [T, H*d], [T, G*d] twice
        if w.bq is not None:
            be.add_bias(s.q, w.bq)
        if w.bk is not None:
            be.add_bias(s.k, w.bk)
        if w.bv is not None:
            be.add_bias(s.v, w.bv)
        if w.q_norm is not None:
            be.rms_norm(s.q, w.q_norm, eps, s.q)
            be.rms_norm(s.k, w.k_norm, eps, s.k)
        if w.rope is not None:
            be.rope(s.q, s.k, step, w.rope, self.cfg.rope_style)
        scaling = self.cfg.rope_scaling
        if scaling is not None and scaling.query_growth:
            be.grow(s.q, step, scaling.query_growth, scaling.original_max_seq_len)
        be.attend(s.q, s.k, s.v, kv, w.attend_spec, step, s.a)  # [T, H*d]
        self.add_branch(s.a, w.wo, w.bo, w.post_attn_norm, s)

    def ffn(self, w: Layer, s: Scratch) -> None:
        """Add the feed-forward of one layer to the residual stream `s.x`."""
        be = self.backend
        h = self.normed(w.ffn_norm, s)  # [T, D]
        be.matmul(h, (w.w_gate, w.w_up), (s.gate, s.up))  # [T, F] twice
        if w.b_gate is not None:
            be.add_bias(s.gate, w.b_gate)
        if w.b_up is not None:
            be.add_bias(s.up, w.b_up)
        be.glu(s.gate, s.up, self.cfg.activation)
        self.add_branch(s.gate, w.w_down, w.b_down, w.post_ffn_norm, s)

    def normed(self, norm: Weight | None, s: Scratch) -> Buf:
        """The input of a branch: the residual stream, normed where there is a norm in front."""
        if norm is None:
            return s.x
        self.backend.rms_norm(s.x, norm, self.cfg.norm_eps, s.h)
        return s.h

    def add_branch(
        self, x: Buf, weight: Weight, bias: Weight | None, norm: Weight | None, s: Scratch
    ) -> None:
        """Add the end of a branch, `x` times its last matrix, to the residual stream `s.x`."""
        be, factor = self.backend, self.cfg.residual_scale
        if bias is None and norm is None and factor == 1:
            be.matmul_add(x, weight, s.x)
            return
        be.matmul(x, (weight,), (s.h,))
        if bias is not None:
            be.add_bias(s.h, bias)
        if norm is not None:
            be.rms_norm(s.h, norm, self.cfg.norm_eps, s.h)
        be.add(s.h, s.x, factor)
