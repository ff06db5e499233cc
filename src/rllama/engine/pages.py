"""PagePool: who holds which page, and which full page holds which tokens. Integers only."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

ROOT = b""  # the chain hash of "no tokens yet"


def chain_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The hash of a full page and of everything before it."""
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()


class PagePool:
    """Counts the holders of every page and finds full pages again by their content.

    Notes:   a page is held (count above 0), idle (published, nobody holds it, findable until it
             is reclaimed) or free (no content); the page idle for longest is reclaimed first, and
             only when no page is free; a find compares parent and tokens, never the hash alone
    """

    def __init__(self, n_pages: int, page_len: int) -> None:
        self.n_pages = n_pages
        self.page_len = page_len
        self._n_holders = [0] * n_pages
        self._free = list(range(n_pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._by_hash: dict[bytes, int] = {}
        self._content: dict[int, tuple[bytes, bytes, tuple[int, ...]]] = {}

    @property
    def n_available(self) -> int:
        """Pages that `take` can still give, the idle ones among them."""
        return len(self._free) + len(self._idle)

    def n_holders(self, page: int) -> int:
        """How many sequences hold a page."""
        return self._n_holders[page]

    def take(self) -> int:
        """A page with one holder and no content. Raises IndexError if none is available."""
        if self._free:
            page = self._free.pop()
        elif self._idle:
            page, _ = self._idle.popitem(last=False)
            own_hash, _, _ = self._content.pop(page)
            del self._by_hash[own_hash]
        else:
            raise IndexError("no page is available")
        self._n_holders[page] = 1
        return page

    def hold(self, page: int) -> None:
        """Add a holder to a page that `find` gave."""
        if self._n_holders[page] == 0:
            del self._idle[page]
        self._n_holders[page] += 1

    def release(self, page: int) -> None:
        """Drop a holder; the last one leaves the page idle if it was published, else free."""
        assert self._n_holders[page] > 0, f"page {page} has no holder"
        self._n_holders[page] -= 1
        if self._n_holders[page] == 0:
            if page in self._content:
                self._idle[page] = None
            else:
                self._free.append(page)

    def publish(self, page: int, own_hash: bytes, parent: bytes, tokens: Sequence[int]) -> None:
        """Make a full, held page findable.

        Notes: where an equal page is known already this one stays private
        """
        assert len(tokens) == self.page_len
        assert self._n_holders[page] > 0
        if own_hash not in self._by_hash and page not in self._content:
            self._by_hash[own_hash] = page
            self._content[page] = (own_hash, parent, tuple(tokens))

    def find(self, own_hash: bytes, parent: bytes, tokens: Sequence[int]) -> int | None:
        """The page of these tokens after that parent."""
        page = self._by_hash.get(own_hash)
        if page is None:
            return None
        _, known_parent, known_tokens = self._content[page]
        if known_parent != parent or known_tokens != tuple(tokens):
            return None
        return page
