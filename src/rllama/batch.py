"""Batch: the flat arrays of one step. Data only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """All tokens of one step, from any mix of sequences, prompt pieces and single decodes.

    Shapes:  token_ids [T] i32, positions [T] i32, seq_start [B+1] i32,
             page_tables [groups, B, P] i32, logit_rows [R] i32
    Notes:   tokens seq_start[b] .. seq_start[b+1] belong to sequence b and have consecutive
             positions; page_tables[g, b, j] is the page of positions j*page_len .. in the g-th
             group of layers; entries that are not needed are -1; logit_rows are the token indices
             whose logits are wanted
    """

    token_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    seq_start: NDArray[np.int32]
    page_tables: NDArray[np.int32]
    logit_rows: NDArray[np.int32]

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def n_seqs(self) -> int:
        return len(self.seq_start) - 1
