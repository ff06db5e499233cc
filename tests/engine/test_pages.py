"""PagePool: counts, reuse and finding by content, as pure logic."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rllama.engine.pages import ROOT, PagePool, chain_hash

LEN = 2


def publish(pool: PagePool, page: int, parent: bytes, tokens: list[int]) -> None:
    pool.publish(page, chain_hash(parent, tokens), parent, tokens)


def find(pool: PagePool, parent: bytes, tokens: list[int]) -> int | None:
    return pool.find(chain_hash(parent, tokens), parent, tokens)


def test_pages_shared_prefix_counts_once() -> None:
    pool = PagePool(4, LEN)
    page = pool.take()
    publish(pool, page, ROOT, [1, 2])
    assert find(pool, ROOT, [1, 2]) == page
    pool.hold(page)
    assert pool.n_holders(page) == 2
    assert pool.n_available == 3


def test_pages_freed_page_is_found_until_reclaimed() -> None:
    pool = PagePool(2, LEN)
    first, second = pool.take(), pool.take()
    publish(pool, first, ROOT, [1, 2])
    publish(pool, second, ROOT, [3, 4])
    pool.release(second)
    pool.release(first)
    assert pool.n_available == 2
    assert pool.take() == second  # idle for longest
    assert find(pool, ROOT, [3, 4]) is None
    assert find(pool, ROOT, [1, 2]) is not None


def test_pages_free_page_is_taken_before_an_idle_one() -> None:
    pool = PagePool(2, LEN)
    page = pool.take()
    publish(pool, page, ROOT, [1, 2])
    pool.release(page)
    assert pool.take() != page


def test_pages_equal_tokens_after_another_parent_are_another_page() -> None:
    pool = PagePool(3, LEN)
    page = pool.take()
    publish(pool, page, chain_hash(ROOT, [9, 9]), [1, 2])
    assert find(pool, ROOT, [1, 2]) is None


def test_pages_second_equal_page_stays_private() -> None:
    pool = PagePool(2, LEN)
    first, second = pool.take(), pool.take()
    pool.publish(first, b"hash", ROOT, [1, 2])
    pool.publish(second, b"hash", ROOT, [1, 2])
    pool.release(second)
    assert pool.find(b"hash", ROOT, [1, 2]) == first


def test_pages_equal_hash_of_other_tokens_is_no_hit() -> None:
    pool = PagePool(2, LEN)
    pool.publish(pool.take(), b"always the same", ROOT, [1, 2])
    assert pool.find(b"always the same", ROOT, [1, 3]) is None
    assert pool.find(b"always the same", b"elsewhere", [1, 2]) is None
    assert pool.find(b"always the same", ROOT, [1, 2]) is not None


def test_pages_take_from_a_full_pool_raises() -> None:
    pool = PagePool(1, LEN)
    pool.take()
    with pytest.raises(IndexError, match="no page"):
        pool.take()


class PoolMachine(RuleBasedStateMachine):
    """Sequences that come, share, publish and go, against a plain model of who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(6, LEN)
        self.held: list[int] = []  # one entry per holder
        self.written: dict[int, tuple[bytes, tuple[int, ...]]] = {}  # what a page was filled with

    @precondition(lambda self: self.pool.n_available > 0)
    @rule()
    def take(self) -> None:
        page = self.pool.take()
        assert page not in self.held, "a held page was given away"
        self.written.pop(page, None)
        self.held.append(page)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), token=st.integers(0, 2), parent=st.sampled_from([ROOT, b"p"]))
    def publish(self, data: st.DataObject, token: int, parent: bytes) -> None:
        page = data.draw(st.sampled_from(self.held))
        if page not in self.written:
            self.written[page] = (parent, (token, token))
            publish(self.pool, page, parent, [token, token])

    @rule(token=st.integers(0, 2), parent=st.sampled_from([ROOT, b"p"]))
    def share(self, token: int, parent: bytes) -> None:
        page = find(self.pool, parent, [token, token])
        if page is not None:
            assert self.written[page] == (parent, (token, token))
            self.pool.hold(page)
            self.held.append(page)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(self.held))
        self.held.remove(page)
        self.pool.release(page)

    @invariant()
    def every_page_is_counted(self) -> None:
        for page in range(6):
            assert self.pool.n_holders(page) == self.held.count(page)
        assert self.pool.n_available == 6 - len(set(self.held))


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_pages_machine = PoolMachine.TestCase
