"""KVCache: the pages of all sequences, group by group; only here and below are there pages."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rllama.engine.pages import ROOT, PagePool, chain_hash
from rllama.engine.request import Sequence
from rllama.kv_groups import KVGroup, pages_over


class SequenceState(Protocol):
    """What the scheduler asks of any kind of per-layer sequence state.

    Notes:   pages of keys and values are one kind, a recurrent state would be another, so
             positions and tokens are the only units here
    """

    def allocate(self, seq: Sequence) -> None:
        """Begin a sequence that holds nothing; sets n_computed to what is known already."""

    def has_room(self, seq: Sequence, n_others: int) -> bool:
        """True if an allocated sequence and one more stretch for each of the others would fit."""

    def extend(self, seq: Sequence, n_tokens: int) -> bool:
        """Make room for n_tokens in all; False, and nothing is lost, where there is none."""

    def commit(self, seq: Sequence) -> None:
        """Note that n_computed tokens are in the cache for good."""

    def free(self, seq: Sequence) -> None:
        """Give everything back; the sequence can be allocated again."""


class Held:
    """What one sequence holds: per group its pages by position, -1 where no later token sees them.

    Notes: n_committed pages are published, counted from the first
    """

    __slots__ = ("n_committed", "n_dropped", "pages")

    def __init__(self, n_groups: int) -> None:
        self.pages: list[list[int]] = [[] for _ in range(n_groups)]
        self.n_dropped = [0] * n_groups
        self.n_committed = 0

    def count(self, i: int) -> int:
        """Pages that it holds in a group."""
        return len(self.pages[i]) - self.n_dropped[i]


class KVCache:
    """Keys and values of all sequences in pages, a pool of them per group of layers.

    Notes:   full and committed pages are shared between sequences with equal beginnings; a group
             with a window gives back what no later token of a sequence sees, which stays findable
             until it is reclaimed; max_step_tokens is the longest stretch of a sequence in a step
    """

    def __init__(
        self,
        groups: Seq[KVGroup],
        page_len: int,
        *,
        max_step_tokens: int,
        share_prefixes: bool = True,
    ) -> None:
        self.groups = tuple(groups)
        self.page_len = page_len
        self.share_prefixes = share_prefixes
        self.pools = tuple(PagePool(group.n_pages, page_len) for group in groups)
        self._has_windows = any(group.window for group in groups)
        # What one sequence holds at most, while it takes its longest stretch.
        self._most = [
            pages_over(group.window + max_step_tokens - 1, page_len) if group.window else 2**31
            for group in groups
        ]
        self._held: dict[Sequence, Held] = {}
        self._table_seqs: list[Sequence] = []
        self._tables: NDArray[np.int32] = np.empty((len(self.groups), 0, 0), np.int32)

    def allocate(self, seq: Sequence) -> None:
        assert seq not in self._held
        held = self._held[seq] = Held(len(self.groups))
        if self.share_prefixes:
            self._share(seq, held, self._n_shared(seq))
        seq.n_computed = held.n_committed * self.page_len
        if seq.n_output == 0:
            seq.n_cached = seq.n_computed

    def _n_shared(self, seq: Sequence) -> int:
        """The longest beginning, in pages, of which every group still has what is to be seen."""
        # The last token is always computed: its logits are what is wanted.
        n = (len(seq.token_ids) - 1) // self.page_len
        for i, group in enumerate(self.groups):
            if not group.window:
                n = next((j for j in range(n) if self._find(seq, i, j) is None), n)
        gap: int | None = n
        while gap is not None:
            n, gap = gap, self._gap(seq, gap)
        return n

    def _gap(self, seq: Sequence, n: int) -> int | None:
        """The last page missing of those that a token after n pages sees through a window."""
        for i, group in enumerate(self.groups):
            if group.window:
                first = group.first_seen(n * self.page_len) // self.page_len
                for j in range(n - 1, first - 1, -1):
                    if self._find(seq, i, j) is None:
                        return j
        return None

    def _find(self, seq: Sequence, group: int, j: int) -> int | None:
        """The page of a group that holds the j-th stretch of a sequence, whoever computed it."""
        start = j * self.page_len
        own_hash, parent = self._hashes(seq, j)
        tokens = seq.token_ids[start : start + self.page_len]
        return self.pools[group].find(own_hash, parent, tokens)

    def _hashes(self, seq: Sequence, j: int) -> tuple[bytes, bytes]:
        """The hash of the first j + 1 pages of tokens, and of the first j."""
        n, chain = self.page_len, seq.chain
        while len(chain) <= j:
            start = len(chain) * n
            parent = chain[-1] if chain else ROOT
            chain.append(chain_hash(parent, seq.token_ids[start : start + n]))
        return chain[j], chain[j - 1] if j else ROOT

    def _share(self, seq: Sequence, held: Held, n: int) -> None:
        """Hold what a token after n pages sees of them."""
        for i, group in enumerate(self.groups):
            first = group.first_seen(n * self.page_len) // self.page_len
            pages = held.pages[i] = [-1] * first
            held.n_dropped[i] = first
            for j in range(first, n):
                page = self._find(seq, i, j)
                assert page is not None
                self.pools[i].hold(page)
                pages.append(page)
        held.n_committed = n

    def has_room(self, seq: Sequence, n_others: int) -> bool:
        held, n_pages = self._held[seq], -(-len(seq.token_ids) // self.page_len)
        for i, pool in enumerate(self.pools):
            n_more = min(n_pages - held.n_dropped[i], self._most[i]) - held.count(i)
            if max(0, n_more) + n_others > pool.n_available:
                return False
        return True

    def extend(self, seq: Sequence, n_tokens: int) -> bool:
        held = self._held.get(seq)
        if held is None:
            held = self._held[seq] = Held(len(self.groups))
        if self._has_windows:
            self._drop_unseen(seq, held)
        n_more = -(-n_tokens // self.page_len) - len(held.pages[0])
        if n_more <= 0:
            return True
        if any(n_more > pool.n_available for pool in self.pools):
            return False
        for pages, pool in zip(held.pages, self.pools, strict=True):
            pages.extend([pool.take() for _ in range(n_more)])
        self._table_seqs = []
        return True

    def _drop_unseen(self, seq: Sequence, held: Held) -> None:
        for i, group in enumerate(self.groups):
            first = group.first_seen(seq.n_computed) // self.page_len
            if first > held.n_dropped[i]:
                pages = held.pages[i]
                for j in range(held.n_dropped[i], first):
                    self.pools[i].release(pages[j])
                    pages[j] = -1
                held.n_dropped[i] = first
                self._table_seqs = []

    def commit(self, seq: Sequence) -> None:
        held, n = self._held[seq], self.page_len
        while self.share_prefixes and (held.n_committed + 1) * n <= seq.n_computed:
            j = held.n_committed
            own_hash, parent = self._hashes(seq, j)
            tokens = seq.token_ids[j * n : (j + 1) * n]
            for pages, pool in zip(held.pages, self.pools, strict=True):
                pool.publish(pages[j], own_hash, parent, tokens)
            held.n_committed += 1

    def free(self, seq: Sequence) -> None:
        held = self._held.pop(seq, None)
        if held is not None:
            # Last page first: a chain is of no use without its beginning.
            for pages, n_dropped, pool in zip(held.pages, held.n_dropped, self.pools, strict=True):
                for page in reversed(pages[n_dropped:]):
                    pool.release(page)
        seq.n_computed = 0
        self._table_seqs = []

    def n_pages_held(self, seq: Sequence) -> tuple[int, ...]:
        """Pages that a sequence holds, group by group."""
        held = self._held.get(seq)
        return tuple(held.count(i) if held is not None else 0 for i in range(len(self.groups)))

    def page_tables(self, seqs: Seq[Sequence]) -> NDArray[np.int32]:
        """Pages of each sequence in position order, -1 after the last and where they are dropped.

        Shapes:  [groups, B, P] i32, P of the longest
        Notes:   the same array comes back while neither the sequences nor their pages change
        """
        if seqs != self._table_seqs:
            self._table_seqs = list(seqs)
            all_pages = [self._held[seq].pages for seq in seqs]
            longest = max(len(pages[0]) for pages in all_pages)
            self._tables = np.full((len(self.groups), len(seqs), longest), -1, np.int32)
            for b, of_seq in enumerate(all_pages):
                for i, pages in enumerate(of_seq):
                    self._tables[i, b, : len(pages)] = pages
        return self._tables
