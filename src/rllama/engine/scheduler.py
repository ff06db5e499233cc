"""Scheduler: who runs in the next step, with how many tokens, and who gives way."""

from __future__ import annotations

from collections import deque

from rllama.engine.kv import SequenceState
from rllama.engine.request import Sequence

Plan = list[tuple[Sequence, int]]


class Scheduler:
    """Two queues in order of arrival, and the plan of each step.

    Notes:   decodes come first, then prompt pieces of running sequences, then new ones, all under
             max_batch_tokens; where even that is too little, those served longest ago come first.
             Room is taken from the youngest, which is computed again later; the oldest can take
             everything, so it always gets on, and nobody waits for ever
    """

    def __init__(self, state: SequenceState, *, max_batch_tokens: int, max_seqs: int) -> None:
        self._state = state
        self.max_batch_tokens = max_batch_tokens
        self.max_seqs = max_seqs
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.n_preempted = 0
        self._n_steps = 0

    def add(self, seq: Sequence) -> None:
        self.waiting.append(seq)

    def remove(self, seq: Sequence) -> None:
        """Forget a sequence, wherever it is, and free what it holds."""
        if seq.status == "running":
            self.running.remove(seq)
        elif seq.status == "waiting":
            self.waiting.remove(seq)
        seq.status = "finished"
        self._state.free(seq)

    def preempt_youngest(self) -> Sequence | None:
        """Take everything from the youngest running sequence and put it back in the queue."""
        if not self.running:
            return None
        seq = self.running.pop()
        self._state.free(seq)
        seq.status = "waiting"
        self.waiting.appendleft(seq)
        self.n_preempted += 1
        return seq

    def plan(self) -> Plan:
        """Choose the tokens of the next step; empty if nobody waits or runs."""
        self._n_steps += 1
        if not self.waiting and len(self.running) == 1:
            seq = self.running[0]
            n_tokens = min(len(seq.token_ids) - seq.n_computed, self.max_batch_tokens)
            if self._state.extend(seq, seq.n_computed + n_tokens):
                return [(seq, n_tokens)]
        chosen: dict[Sequence, int] = {}
        self._plan_running(chosen)
        self._plan_waiting(chosen)
        for seq in chosen:
            seq.last_step = self._n_steps
        return list(chosen.items())

    def _plan_running(self, chosen: dict[Sequence, int]) -> None:
        order = [s for s in self.running if len(s.token_ids) - s.n_computed == 1]
        prompts = [s for s in self.running if len(s.token_ids) - s.n_computed > 1]
        piece = self.max_batch_tokens
        if len(order) + bool(prompts) > piece:
            order = sorted(self.running, key=lambda s: s.last_step)
            piece = max(1, piece // len(order))
        else:
            order += prompts
        budget = self.max_batch_tokens
        for seq in order:
            n_tokens = min(len(seq.token_ids) - seq.n_computed, budget, piece)
            if n_tokens > 0 and seq.status == "running" and self._make_room(seq, n_tokens, chosen):
                chosen[seq] = n_tokens
                budget -= n_tokens

    def _make_room(self, seq: Sequence, n_tokens: int, chosen: dict[Sequence, int]) -> bool:
        while not self._state.extend(seq, seq.n_computed + n_tokens):
            if self.running[-1] is seq:
                return False  # it keeps what it has, and goes on once an older one ends
            victim = self.preempt_youngest()
            if victim is not None:
                chosen.pop(victim, None)
        return True

    def _plan_waiting(self, chosen: dict[Sequence, int]) -> None:
        budget = self.max_batch_tokens - sum(chosen.values())
        while self.waiting and budget > 0 and len(self.running) < self.max_seqs:
            seq = self.waiting[0]
            self._state.allocate(seq)
            n_tokens = min(len(seq.token_ids) - seq.n_computed, budget)
            fits = self._state.has_room(seq, len(self.running)) or not self.running
            if not (fits and self._state.extend(seq, seq.n_computed + n_tokens)):
                self._state.free(seq)
                return
            self.waiting.popleft()
            seq.status = "running"
            self.running.append(seq)
            chosen[seq] = n_tokens
            budget -= n_tokens
