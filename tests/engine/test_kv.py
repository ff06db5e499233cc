"""KVCache: what sequences hold in groups of layers with and without a window."""

from __future__ import annotations

import pytest
from hash_model import ask
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rllama.engine.kv import KVCache
from rllama.engine.request import Sequence
from rllama.kv_groups import KVGroup, pages_over

LEN = 4
STEP = 8  # tokens of a step at most


def make_cache(*windows: int, n_pages: int = 40, share_prefixes: bool = True) -> KVCache:
    groups = [KVGroup((i,), window, n_pages) for i, window in enumerate(windows)]
    return KVCache(groups, LEN, max_step_tokens=STEP, share_prefixes=share_prefixes)


def make_seq(tokens: list[int]) -> Sequence:
    return Sequence(ask(tokens), 0, list(tokens), len(tokens))


def compute(cache: KVCache, seq: Sequence, n_tokens: int) -> None:
    """Steps up to n_tokens, as the engine takes them."""
    while seq.n_computed < n_tokens:
        end = min(seq.n_computed + STEP, n_tokens)
        assert cache.extend(seq, end)
        seq.n_computed = end
        cache.commit(seq)


def run(cache: KVCache, tokens: list[int]) -> Sequence:
    seq = make_seq(tokens)
    cache.allocate(seq)
    compute(cache, seq, len(tokens))
    return seq


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9])
def test_pages_over_is_the_most_that_a_stretch_touches(n: int) -> None:
    touched = [len({p // LEN for p in range(first, first + n)}) for first in range(LEN)]
    assert pages_over(n, LEN) == max(touched)


@pytest.mark.parametrize("window", [1, 4, 5, 30])
def test_kv_window_holds_what_the_next_token_sees(window: int) -> None:
    cache = make_cache(0, window)
    seq = make_seq(list(range(60)))
    cache.allocate(seq)
    for n in range(1, 61):
        assert cache.extend(seq, n)
        everything, seen = cache.page_tables([seq])[:, 0].tolist()
        first = max(0, n - window) // LEN  # n tokens: the newest is at n - 1
        assert min(everything) >= 0
        assert len(everything) == -(-n // LEN)
        assert [page < 0 for page in seen] == [j < first for j in range(len(seen))]
        seq.n_computed = n
        cache.commit(seq)


@pytest.mark.parametrize("window", [1, 7, 30])
def test_kv_window_pages_stay_bounded_over_two_thousand_tokens(window: int) -> None:
    most = pages_over(window + STEP - 1, LEN)
    cache = make_cache(window, n_pages=most)
    seq = make_seq(list(range(2000)))
    cache.allocate(seq)
    held = []
    while seq.n_computed < 2000:
        end = min(seq.n_computed + STEP, 2000)
        assert cache.extend(seq, end)
        held.append(cache.n_pages_held(seq)[0])
        seq.n_computed = end
        cache.commit(seq)
    assert max(held) <= most
    cache.free(seq)
    assert cache.pools[0].n_available == most


def test_kv_prefix_is_shared_from_what_its_next_token_sees() -> None:
    cache = make_cache(0, 6)
    tokens = list(range(30))
    cache.free(run(cache, tokens))
    seq = make_seq([*tokens[:21], 99])
    cache.allocate(seq)
    assert seq.n_computed == 20
    assert cache.n_pages_held(seq) == (5, 2)  # positions 15 to 19 lie in pages 3 and 4
    assert cache.page_tables([seq])[1, 0, :3].tolist() == [-1] * 3


def test_kv_prefix_ends_before_a_gap_in_a_window() -> None:
    """The window's pages 0 to 4 are reclaimed: a hit that needs one of them is none."""
    cache = make_cache(0, 6, n_pages=12)
    tokens = list(range(40))
    cache.free(run(cache, tokens))
    found = [cache._find(make_seq(tokens), 1, j) is not None for j in range(10)]
    assert found == [True] * 10
    for _ in range(2 + 5):  # two are free
        cache.pools[1].take()
    missing = [j for j in range(10) if cache._find(make_seq(tokens), 1, j) is None]
    assert missing == [0, 1, 2, 3, 4]
    for n_tokens, n_shared in ((41, 40), (33, 32), (29, 28), (25, 0), (9, 0)):
        seq = make_seq([*tokens, 99][:n_tokens])
        cache.allocate(seq)
        assert seq.n_computed == n_shared
        cache.free(seq)


def test_kv_windows_alone_share_without_the_beginning() -> None:
    cache = make_cache(6, n_pages=4)
    tokens = list(range(40))
    cache.free(run(cache, tokens))
    again = make_seq([*tokens, 7])
    cache.allocate(again)
    assert (again.n_computed, cache.n_pages_held(again)) == (40, (2,))
    other = make_seq([1, *tokens[1:], 7])
    cache.allocate(other)
    assert other.n_computed == 0


def test_kv_has_room_counts_a_window_at_its_most() -> None:
    most = pages_over(6 + STEP - 1, LEN)
    cache = make_cache(6, n_pages=most)
    seq = make_seq(list(range(500)))
    cache.allocate(seq)
    assert cache.has_room(seq, 0)
    assert not cache.has_room(seq, 1)


def test_kv_extend_without_room_changes_nothing_that_is_seen() -> None:
    cache = make_cache(0, 6, n_pages=5)
    seq = run(cache, list(range(16)))
    tables = cache.page_tables([seq])[:, 0, -2:].tolist()
    held = cache.n_pages_held(seq)
    assert not cache.extend(seq, 24)
    assert cache.page_tables([seq])[:, 0, -2:].tolist() == tables
    assert cache.n_pages_held(seq)[0] == held[0]
    assert cache.extend(seq, 20)


class CacheMachine(RuleBasedStateMachine):
    """Sequences that come, go on, give way and end; every page's content is known from outside."""

    @initialize(
        windows=st.sampled_from([(0,), (5,), (0, 3), (9, 1), (0, 4, 13)]), share=st.booleans()
    )
    def start(self, windows: tuple[int, ...], share: bool) -> None:
        self.cache = make_cache(*windows, n_pages=16, share_prefixes=share)
        self.running: list[Sequence] = []
        self.content: list[dict[int, list[object]]] = [{} for _ in windows]

    @rule(beginning=st.sampled_from([3, 8, 12, 20, 26]), end=st.integers(0, 2))
    def arrive(self, beginning: int, end: int) -> None:
        seq = make_seq([7] * beginning + [end] * 6)
        self.cache.allocate(seq)
        assert seq.n_computed < len(seq.token_ids)
        self.running.append(seq)
        self.check_seen(seq)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), n_tokens=st.integers(1, STEP))
    def step(self, data: st.DataObject, n_tokens: int) -> None:
        seq = data.draw(st.sampled_from(self.running))
        end = min(seq.n_computed + n_tokens, len(seq.token_ids))
        if end == seq.n_computed or not self.cache.extend(seq, end):
            return
        for i, table in enumerate(self.cache.page_tables([seq])[:, 0].tolist()):
            for p in range(seq.n_computed, end):
                cells = self.content[i].setdefault(table[p // LEN], [None] * LEN)
                cells[p % LEN] = tuple(seq.token_ids[: p + 1])
        self.check_seen(seq)
        seq.n_computed = end
        self.cache.commit(seq)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(self.running))
        self.running.remove(seq)
        self.cache.free(seq)
        self.cache.free(seq)
        assert seq.n_computed == 0

    def check_seen(self, seq: Sequence) -> None:
        """What the next token sees was computed from the tokens before it."""
        tables = self.cache.page_tables([seq])[:, 0].tolist()
        for i, group in enumerate(self.cache.groups):
            for p in range(group.first_seen(seq.n_computed), seq.n_computed):
                cell = self.content[i][tables[i][p // LEN]][p % LEN]
                assert cell == tuple(seq.token_ids[: p + 1])

    @invariant()
    def pages_are_counted(self) -> None:
        for i, pool in enumerate(self.cache.pools if hasattr(self, "cache") else ()):
            tables = [self.cache._held[seq].pages[i] for seq in self.running]
            held = [page for table in tables for page in table if page >= 0]
            assert all(pool.n_holders(p) == held.count(p) for p in range(pool.n_pages))
            assert pool.n_available == pool.n_pages - len(set(held))
            most = self.cache._most[i]
            assert all(sum(page >= 0 for page in table) <= most for table in tables)


CacheMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
test_kv_machine = CacheMachine.TestCase
