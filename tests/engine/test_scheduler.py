"""Scheduler: who runs, how much, and who gives way, as pure logic on counted room."""

from __future__ import annotations

from hash_model import ask
from hypothesis import given, settings
from hypothesis import strategies as st

from rllama.engine.request import Sequence
from rllama.engine.scheduler import Plan, Scheduler


class CountedRoom:
    """Sequence state that is nothing but a number of free positions."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.held: dict[int, int] = {}

    @property
    def n_free(self) -> int:
        return self.size - sum(self.held.values())

    def allocate(self, seq: Sequence) -> None:
        assert seq.id not in self.held, "allocated twice"
        self.held[seq.id] = 0

    def has_room(self, seq: Sequence, n_others: int) -> bool:
        return len(seq.token_ids) + n_others <= self.n_free

    def extend(self, seq: Sequence, n_tokens: int) -> bool:
        if n_tokens - self.held[seq.id] > self.n_free:
            return False
        self.held[seq.id] = max(n_tokens, self.held[seq.id])
        return True

    def commit(self, seq: Sequence) -> None:
        pass

    def free(self, seq: Sequence) -> None:
        self.held.pop(seq.id, None)
        seq.n_computed = 0


def make_seq(n_prompt: int, n_new: int = 4) -> Sequence:
    seq = Sequence(ask(range(n_prompt)), 0, list(range(n_prompt)), n_prompt)
    seq.max_tokens = n_prompt + n_new
    return seq


def play(scheduler: Scheduler, plan: Plan) -> list[Sequence]:
    """Pretend to run a plan; the sequences that ended by it."""
    ended = []
    for seq, n_tokens in plan:
        seq.n_computed += n_tokens
        if seq.n_computed == len(seq.token_ids):
            seq.token_ids.append(0)
            if len(seq.token_ids) >= seq.max_tokens:
                scheduler.remove(seq)
                ended.append(seq)
    return ended


def make(n_room: int = 1000, tokens: int = 16, seqs: int = 4) -> tuple[Scheduler, CountedRoom]:
    room = CountedRoom(n_room)
    return Scheduler(room, max_batch_tokens=tokens, max_seqs=seqs), room


def shape(plan: Plan) -> list[tuple[int, int]]:
    return [(seq.n_prompt, n_tokens) for seq, n_tokens in plan]


def test_scheduler_decodes_come_before_prompts() -> None:
    scheduler, _ = make()
    scheduler.add(make_seq(3))
    play(scheduler, scheduler.plan())
    scheduler.add(make_seq(40))
    assert shape(scheduler.plan()) == [(3, 1), (40, 15)]


def test_scheduler_prompt_goes_in_pieces() -> None:
    scheduler, _ = make()
    scheduler.add(make_seq(40))
    shapes = []
    for _ in range(4):
        plan = scheduler.plan()
        shapes.append(shape(plan))
        play(scheduler, plan)
    assert shapes == [[(40, 16)], [(40, 16)], [(40, 8)], [(40, 1)]]


def test_scheduler_running_prompt_goes_on_before_a_new_one() -> None:
    scheduler, _ = make()
    scheduler.add(make_seq(20))
    scheduler.add(make_seq(5))
    plan = scheduler.plan()
    assert shape(plan) == [(20, 16)]
    play(scheduler, plan)
    assert shape(scheduler.plan()) == [(20, 4), (5, 5)]


def test_scheduler_holds_at_most_max_seqs() -> None:
    scheduler, _ = make(seqs=2)
    for _ in range(5):
        scheduler.add(make_seq(1))
    assert len(scheduler.plan()) == 2
    assert len(scheduler.waiting) == 3


def test_scheduler_preempts_the_youngest_and_keeps_the_order() -> None:
    scheduler, room = make(n_room=20)
    old, middle, young = make_seq(5, 15), make_seq(5, 15), make_seq(5, 15)
    for seq in (old, middle, young):
        scheduler.add(seq)
    while not scheduler.n_preempted:
        play(scheduler, scheduler.plan())
    assert scheduler.running == [old, middle]
    assert list(scheduler.waiting) == [young]
    assert young.n_computed == 0
    assert young.id not in room.held
    while scheduler.n_preempted < 2:
        play(scheduler, scheduler.plan())
    assert list(scheduler.waiting) == [middle, young]


def test_scheduler_preempted_is_taken_out_of_the_plan() -> None:
    # The young one decodes, so it is planned first; the old one's piece then takes its room.
    scheduler, _ = make(n_room=14)
    old, young = make_seq(9, 9), make_seq(1, 9)
    scheduler.add(old)
    play(scheduler, scheduler.plan())
    scheduler.add(young)
    play(scheduler, scheduler.plan())
    assert (old.n_computed, young.n_computed) == (10, 1)
    old.token_ids += [0] * 3
    assert scheduler.plan() == [(old, 4)]
    assert list(scheduler.waiting) == [young]


def test_scheduler_takes_turns_when_the_budget_is_short() -> None:
    scheduler, _ = make(tokens=2, seqs=4)
    seqs = [make_seq(1, 50) for _ in range(4)]
    scheduler.max_batch_tokens = 8
    for seq in seqs:
        scheduler.add(seq)
    play(scheduler, scheduler.plan())
    scheduler.max_batch_tokens = 2
    for _ in range(20):
        plan = scheduler.plan()
        assert len(plan) == 2
        play(scheduler, plan)
    counts = [len(seq.token_ids) for seq in seqs]
    assert max(counts) - min(counts) <= 1


def test_scheduler_remove_frees_waiting_and_running() -> None:
    scheduler, room = make(seqs=1)
    first, second = make_seq(3), make_seq(3)
    scheduler.add(first)
    scheduler.add(second)
    scheduler.plan()
    scheduler.remove(second)
    scheduler.remove(first)
    assert not room.held
    assert scheduler.plan() == []


@settings(max_examples=150, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 6), st.integers(1, 30), st.integers(1, 10)), max_size=12
    ),
    tokens=st.integers(1, 40),
    seqs=st.integers(1, 6),
    n_room=st.integers(40, 90),
    aborted=st.sets(st.integers(0, 11)),
)
def test_scheduler_everything_ends(
    arrivals: list[tuple[int, int, int]], tokens: int, seqs: int, n_room: int, aborted: set[int]
) -> None:
    scheduler, room = make(n_room, tokens, seqs)
    live: list[Sequence] = []
    for i, (gap, n_prompt, n_new) in enumerate(arrivals):
        for _ in range(gap):
            for seq in step_checked(scheduler, room, live):
                live.remove(seq)
        seq = make_seq(n_prompt, n_new)
        scheduler.add(seq)
        live.append(seq)
        if i in aborted:
            scheduler.remove(live.pop(0))
    for _ in range(10_000):
        if not live:
            break
        for seq in step_checked(scheduler, room, live):
            live.remove(seq)
    assert not live
    assert not room.held
    assert not scheduler.running
    assert not scheduler.waiting


def step_checked(scheduler: Scheduler, room: CountedRoom, live: list[Sequence]) -> list[Sequence]:
    """One step, with everything that holds for every plan."""
    plan = scheduler.plan()
    assert bool(plan) == bool(live), "somebody waits and nobody runs"
    assert sum(n for _, n in plan) <= scheduler.max_batch_tokens
    assert len({seq.id for seq, _ in plan}) == len(plan)
    assert len(scheduler.running) <= scheduler.max_seqs
    assert room.n_free >= 0
    queue = [*scheduler.running, *scheduler.waiting]
    assert [seq.id for seq in queue] == sorted(seq.id for seq in live)
    for seq, n_tokens in plan:
        assert seq in scheduler.running
        assert n_tokens >= 1
        assert seq.n_computed + n_tokens <= room.held[seq.id]
        assert seq.n_computed + n_tokens <= len(seq.token_ids)
    return play(scheduler, plan)
