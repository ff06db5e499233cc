"""Stream: the pieces of one request as they come, for a thread or an asyncio task."""

from __future__ import annotations

from collections.abc import Callable

from rllama.engine.completion import CompletionStats, Gatherer, Piece, piece_of
from rllama.engine.outbox import AsyncOutbox, Outbox
from rllama.engine.request import StepOutput

OnPrefill = Callable[[int, int], None]  # prompt tokens computed so far, prompt tokens in all


class Stream:
    """Iterates over the pieces of a completion.

    Notes:   closing or dropping it aborts the request; `stats` counts what has come so far
    Raises:  whatever ended the request before its time
    """

    def __init__(self, outbox: Outbox, on_prefill: OnPrefill | None = None) -> None:
        self._outbox = outbox
        self._gatherer = Gatherer(outbox.seq)
        self._on_prefill = on_prefill

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        while True:
            output = next(self._outbox)
            self._gatherer.add(output)
            self._report(output)
            piece = piece_of(output)
            if piece is not None:
                return piece

    def _report(self, output: StepOutput) -> None:
        if self._on_prefill is not None:
            n_prompt = self._outbox.seq.n_prompt
            self._on_prefill(output.n_prompt_done, n_prompt)
            if output.n_prompt_done >= n_prompt:
                self._on_prefill = None

    @property
    def stats(self) -> CompletionStats:
        """Counts and times so far."""
        return self._gatherer.stats()

    def close(self) -> None:
        """Abort the request unless it has ended."""
        self._outbox.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStream:
    """Like Stream, in the event loop that runs where it is made.

    Notes: closing or dropping it, or cancelling the task that waits on it, aborts the request
    """

    def __init__(self, outbox: AsyncOutbox) -> None:
        self._outbox = outbox
        self._gatherer = Gatherer(outbox.seq)

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Piece:
        while True:
            output = await anext(self._outbox)
            self._gatherer.add(output)
            piece = piece_of(output)
            if piece is not None:
                return piece

    @property
    def stats(self) -> CompletionStats:
        """Counts and times so far."""
        return self._gatherer.stats()

    async def aclose(self) -> None:
        """Abort the request unless it has ended."""
        self._outbox.close()
