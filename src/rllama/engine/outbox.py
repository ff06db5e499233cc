"""Outbox: where one request's outputs wait for its consumer, a thread or an asyncio task."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING

from rllama.engine.request import Sequence, StepOutput

if TYPE_CHECKING:
    import asyncio

Abort = Callable[[int], None]


class AsyncChannel:
    """The engine's end of an AsyncOutbox: `put` works from any thread."""

    def __init__(self) -> None:
        import asyncio  # it takes a tenth of the start of a program that does not need it

        self._loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[StepOutput] = asyncio.Queue()

    def put(self, output: StepOutput) -> None:
        with suppress(RuntimeError):  # the event loop is closed: nobody will read this
            self._loop.call_soon_threadsafe(self.queue.put_nowait, output)


Channel = SimpleQueue[StepOutput] | AsyncChannel


class _Box:
    """What both kinds share: a sequence, an end, and the way to give up."""

    def __init__(self, seq: Sequence, abort: Abort) -> None:
        self.seq = seq
        self._abort = abort
        self._is_done = False

    def close(self) -> None:
        """Give up: the request is aborted unless it has ended. May be called twice."""
        if not self._is_done:
            self._is_done = True
            self._abort(self.seq.id)

    def __del__(self) -> None:
        self.close()

    def _take(self, output: StepOutput) -> StepOutput:
        if output.finish_reason is not None:
            self._is_done = True
        if output.error is not None:
            raise output.error
        return output


class Outbox(_Box):
    """Iterates over the outputs of a request, from one thread at a time.

    Notes:   dropping it, or an exception while it waits (Ctrl-C), aborts the request
    Raises:  whatever ended the request before its time
    """

    def __init__(self, seq: Sequence, abort: Abort) -> None:
        super().__init__(seq, abort)
        self.channel: SimpleQueue[StepOutput] = SimpleQueue()

    def __iter__(self) -> Outbox:
        return self

    def __next__(self) -> StepOutput:
        if self._is_done:
            raise StopIteration
        try:
            return self._take(self.channel.get())
        except BaseException:
            self.close()
            raise


class AsyncOutbox(_Box):
    """Iterates over the outputs of a request in the event loop that runs where it is made.

    Notes: dropping it, or cancelling the task that waits on it, aborts the request
    """

    def __init__(self, seq: Sequence, abort: Abort) -> None:
        super().__init__(seq, abort)
        self.channel = AsyncChannel()

    def __aiter__(self) -> AsyncOutbox:
        return self

    async def __anext__(self) -> StepOutput:
        if self._is_done:
            raise StopAsyncIteration
        try:
            return self._take(await self.channel.queue.get())
        except BaseException:
            self.close()
            raise
