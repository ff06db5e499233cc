"""The one-page model: Llama 1, 2 and 3, and everything shaped like them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from rllama.backend import KVStore, Scratch
from rllama.batch import Batch
from rllama.models.base import Decoder
from rllama.models.table import T


class Llama(Decoder):
    """RMSNorm, rotary attention with grouped heads, SwiGLU.

    Source:  arXiv 2302.13971, 2307.09288, 2407.21783
    """

    TENSORS = (
        T("embed", "V, D"),
        T("layers.{i}.attn_norm", "D"),
        T("layers.{i}.wq", "H*d, D"),
        T("layers.{i}.wk", "G*d, D"),
        T("layers.{i}.wv", "G*d, D"),
        T("layers.{i}.wo", "D, H*d"),
        T("layers.{i}.ffn_norm", "D"),
        T("layers.{i}.w_gate", "F, D"),
        T("layers.{i}.w_up", "F, D"),
        T("layers.{i}.w_down", "D, F"),
        T("final_norm", "D"),
        T("lm_head", "V, D"),
    )

    def forward(self, batch: Batch, kv: KVStore) -> NDArray[np.float32]:
        """Compute one step; the logits of `batch.logit_rows`.

        Shapes:  result [R, V] f32
        """
        be, s, eps = self.backend, self.scratch.take(batch.n_tokens), self.cfg.norm_eps
        step = be.begin(batch)
        be.embed(step, self.embed, s.x)  # [T, D]
        for w in self.layers:
            be.rms_norm(s.x, w.attn_norm, eps, s.h)  # [T, D]
            be.matmul(s.h, (w.wq, w.wk, w.wv), (s.q, s.k, s.v))  # [T, H*d], [T, G*d] twice
            be.rope(s.q, s.k, step, self.rope_table, self.cfg.rope_style)
            be.attend(s.q, s.k, s.v, kv, w.attend_spec, step, s.a)  # [T, H*d]
            be.matmul_add(s.a, w.wo, s.x)
            be.rms_norm(s.x, w.ffn_norm, eps, s.h)
            self.ffn(w, s)
        be.rms_norm(s.x, self.final_norm, eps, s.h)
        return be.logits(s.h, step, self.lm_head)  # [R, V]

    def ffn(self, w: SimpleNamespace, s: Scratch) -> None:
        """Add the feed-forward of one layer to the residual stream `s.x`; its input is `s.h`."""
        be = self.backend
        be.matmul(s.h, (w.w_gate, w.w_up), (s.gate, s.up))  # [T, F] twice
        be.glu(s.gate, s.up, self.cfg.activation)
        be.matmul_add(s.gate, w.w_down, s.x)
