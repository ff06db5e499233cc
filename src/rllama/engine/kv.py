"""KVCache: a PagePool joined to the backend's KVStore; only here and below are there pages."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rllama.backend import KVStore
from rllama.engine.pages import ROOT, PagePool
from rllama.engine.request import Sequence


class SequenceState(Protocol):
    """What the scheduler asks of any kind of per-layer sequence state.

    Notes:   pages of keys and values are one kind; a compact sliding window or a recurrent state
             are others, so positions and tokens are the only units here
    """

    def allocate(self, seq: Sequence) -> None:
        """Begin a sequence that holds nothing; sets n_computed to what is known already."""

    def has_room(self, seq: Sequence, n_others: int) -> bool:
        """True if an allocated sequence and one more stretch for each of the others would fit."""

    def extend(self, seq: Sequence, n_tokens: int) -> bool:
        """Make room for n_tokens in all; False, and nothing changed, where there is none."""

    def commit(self, seq: Sequence) -> None:
        """Note that n_computed tokens are in the cache for good."""

    def free(self, seq: Sequence) -> None:
        """Give everything back; the sequence can be allocated again."""


class KVCache:
    """Keys and values of all sequences in pages of one store.

    Notes:   pages that are full and committed are shared between sequences with equal beginnings
    """

    def __init__(self, store: KVStore, *, share_prefixes: bool = True) -> None:
        self.store = store
        self.share_prefixes = share_prefixes
        self.page_len = store.page_len
        self.pool = PagePool(store.n_pages, store.page_len)
        self._table_seqs: list[Sequence] = []
        self._table: NDArray[np.int32] = np.empty((0, 0), np.int32)

    def allocate(self, seq: Sequence) -> None:
        assert not seq.pages
        if self.share_prefixes:
            self._attach_prefix(seq)
        seq.n_computed = len(seq.pages) * self.page_len
        if seq.n_output == 0:
            seq.n_cached = seq.n_computed

    def _attach_prefix(self, seq: Sequence) -> None:
        # The last token is always computed: its logits are what is wanted.
        chain, tokens, n = seq.chain, seq.token_ids, self.page_len
        for start in range(0, (len(tokens) - 1) // n * n, n):
            found = self.pool.find(chain, tokens[start : start + n])
            if found is None:
                break
            page, chain = found
            self.pool.hold(page)
            seq.pages.append(page)
        seq.chain = chain
        seq.n_committed = len(seq.pages)

    def has_room(self, seq: Sequence, n_others: int) -> bool:
        n_pages = -(-len(seq.token_ids) // self.page_len) - len(seq.pages)
        return n_pages + n_others <= self.pool.n_available

    def extend(self, seq: Sequence, n_tokens: int) -> bool:
        n_more = -(-n_tokens // self.page_len) - len(seq.pages)
        if n_more <= 0:
            return True
        if n_more > self.pool.n_available:
            return False
        for _ in range(n_more):
            seq.pages.append(self.pool.take())
        self._table_seqs = []
        return True

    def commit(self, seq: Sequence) -> None:
        n = self.page_len
        while (seq.n_committed + 1) * n <= seq.n_computed:
            if not self.share_prefixes:
                return
            start = seq.n_committed * n
            page = seq.pages[seq.n_committed]
            seq.chain = self.pool.publish(page, seq.chain, seq.token_ids[start : start + n])
            seq.n_committed += 1

    def free(self, seq: Sequence) -> None:
        # Last page first: a chain is of no use without its beginning.
        for page in reversed(seq.pages):
            self.pool.release(page)
        seq.pages.clear()
        seq.chain, seq.n_committed, seq.n_computed = ROOT, 0, 0
        self._table_seqs = []

    def page_table(self, seqs: Seq[Sequence]) -> NDArray[np.int32]:
        """Pages of each sequence in position order, -1 after the last.

        Shapes:  [B, P] i32, P of the longest
        Notes:   the same array comes back while neither the sequences nor their pages change
        """
        if seqs != self._table_seqs:
            self._table_seqs = list(seqs)
            self._table = np.full((len(seqs), max(len(s.pages) for s in seqs)), -1, np.int32)
            for row, seq in zip(self._table, seqs, strict=True):
                row[: len(seq.pages)] = seq.pages
        return self._table

    def close(self) -> None:
        self.store.close()
