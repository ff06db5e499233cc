"""Assembler: a plan becomes the flat arrays of one step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rllama.batch import Batch
from rllama.engine.kv import KVCache
from rllama.engine.scheduler import Plan


def _i32(values: list[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


class Assembler:
    """Makes batches; those of a single decoded token reuse the same arrays.

    Notes: a batch is valid until the next one is built
    """

    def __init__(self, kv: KVCache) -> None:
        self._kv = kv
        self._one = Batch(
            _i32([0]), _i32([0]), _i32([0, 1]), np.empty((1, 1, 0), np.int32), _i32([0])
        )

    def build(self, plan: Plan, *, all_rows: bool = False) -> Batch:
        """The batch of a plan, with logits for each sequence whose last token is in it."""
        if len(plan) == 1 and plan[0][1] == 1:
            seq = plan[0][0]
            if seq.n_computed + 1 == len(seq.token_ids):
                return self._build_one(plan)
        token_ids: list[int] = []
        positions: list[int] = []
        seq_start, rows = [0], []
        for seq, n_tokens in plan:
            begin, end = seq.n_computed, seq.n_computed + n_tokens
            token_ids += seq.token_ids[begin:end]
            positions += range(begin, end)
            seq_start.append(len(token_ids))
            if end == len(seq.token_ids):
                rows.append(len(token_ids) - 1)
        if all_rows:
            rows = list(range(len(token_ids)))
        tables = self._kv.page_tables([seq for seq, _ in plan])
        return Batch(_i32(token_ids), _i32(positions), _i32(seq_start), tables, _i32(rows))

    def _build_one(self, plan: Plan) -> Batch:
        seq, one = plan[0][0], self._one
        position = seq.n_computed
        one.token_ids[0] = seq.token_ids[position]
        one.positions[0] = position
        tables = self._kv.page_tables([seq])
        if tables is not one.page_tables:
            one = Batch(one.token_ids, one.positions, one.seq_start, tables, one.logit_rows)
            self._one = one
        return one
