"""Worker: the one engine thread; queues in and out for everyone else."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

from rllama.engine.engine import Engine
from rllama.engine.outbox import AsyncOutbox, Channel, Outbox
from rllama.engine.request import Request, Sequence, StepOutput
from rllama.errors import EngineClosedError, OverloadedError

log = logging.getLogger(__name__)

T = TypeVar("T")


class _Loop:
    """What the thread runs; it knows nothing of the Worker, so that one can be dropped."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.channels: dict[int, Channel] = {}
        # Held while the engine works. A fork waits for it, and takes the turnstile first: else the
        # next step would have it again before the forking thread wakes.
        self.step_lock = threading.RLock()
        self.turnstile = threading.Lock()

    def run(self) -> None:
        """Work until None arrives, then end what is left."""
        inbox, engine = self.inbox, self.engine
        try:
            while True:
                if engine.has_work and inbox.empty():
                    self._step()
                elif (job := inbox.get()) is not None:
                    self._do(job)
                else:
                    break
        finally:
            self.end()

    def _do(self, job: Callable[[], None]) -> None:
        self.hold()
        try:
            job()
        except Exception:
            log.exception("a job of the engine thread failed")
        finally:
            self.step_lock.release()

    def _step(self) -> None:
        self.hold()
        try:
            outputs = self.engine.step()
        except Exception as error:
            log.exception("the engine failed and starts afresh")
            self.engine.reset()
            self.fail_all(error)
            return
        finally:
            self.step_lock.release()
        for output in outputs:
            self.deliver(output)

    def hold(self) -> None:
        """Take the step lock, behind a fork that waits for it."""
        with self.turnstile:
            self.step_lock.acquire()

    def deliver(self, output: StepOutput) -> None:
        if output.finish_reason is None:
            channel = self.channels.get(output.seq_id)
        else:
            channel = self.channels.pop(output.seq_id, None)
        if channel is not None:
            channel.put(output)

    def fail_all(self, error: Exception) -> None:
        for seq_id in list(self.channels):
            self.deliver(StepOutput(seq_id, finish_reason="abort", error=error))

    def admit(self, seq: Sequence, channel: Channel) -> None:
        self.channels[seq.id] = channel
        try:
            self.engine.admit(seq)
        except Exception as error:
            self.deliver(StepOutput(seq.id, finish_reason="abort", error=error))

    def end(self) -> None:
        """Close the engine and tell everyone who still waits."""
        self.hold()
        self.engine.close()
        self.step_lock.release()
        self.fail_all(EngineClosedError("the engine was closed before the request had ended"))
        while not self.inbox.empty():
            job = self.inbox.get()
            if job is not None:
                self._do(job)


class Worker:
    """Runs an engine in a thread of its own, for any number of threads and tasks.

    Notes:   the thread starts with the first call and waits without spinning; after a fork the
             child gets a fresh one, and requests of the parent stay with the parent
    Raises:  EngineClosedError from every call after `close`
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_forked = False
        self._is_closed = False
        self._renew()
        _workers.add(self)

    def _renew(self) -> None:
        self._loop = _Loop(self._engine)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, request: Request, *, is_bounded: bool = True) -> Outbox:
        """Queue a request; iterate over what comes back for its outputs.

        Notes:   is_bounded=False lets a caller that brings its own bound pass a full queue
        Raises:  ConfigError, ContextFullError, OverloadedError
        """
        seq = self._engine.prepare(request)
        outbox = Outbox(seq, self.abort)
        self._send(seq, outbox.channel, is_bounded)
        return outbox

    def submit_async(self, request: Request, *, is_bounded: bool = True) -> AsyncOutbox:
        """Like submit, for the running event loop."""
        seq = self._engine.prepare(request)
        outbox = AsyncOutbox(seq, self.abort)
        self._send(seq, outbox.channel, is_bounded)
        return outbox

    def _send(self, seq: Sequence, channel: Channel, is_bounded: bool) -> None:
        max_waiting = self._engine.config.max_waiting

        with self._lock:
            loop = self._started()
            if is_bounded and loop.inbox.qsize() + self._engine.n_waiting >= max_waiting:
                raise OverloadedError(f"{max_waiting} requests are waiting; try again later")
            loop.inbox.put(lambda: loop.admit(seq, channel))

    def abort(self, seq_id: int) -> None:
        """End a request; its last output has finish_reason "abort". Nothing if it has ended."""
        # No lock here: a finalizer may call this at any point of any thread.
        engine = self._engine
        self._loop.inbox.put(lambda: engine.abort(seq_id))

    def call(self, function: Callable[[Engine], T]) -> Future[T]:
        """Run a function in the engine thread, between two steps."""
        future: Future[T] = Future()

        def job() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(self._engine))
                except Exception as error:
                    future.set_exception(error)

        with self._lock:
            self._started().inbox.put(job)
        return future

    def _started(self) -> _Loop:
        if self._is_closed:
            raise EngineClosedError("the engine is closed")
        if self._thread is None:
            if self._is_forked:
                log.warning("forked: process %d has an engine thread of its own", os.getpid())
            self._thread = threading.Thread(
                target=self._loop.run, name="rllama-engine", daemon=True
            )
            self._thread.start()
        return self._loop

    def close(self) -> None:
        """End the thread after its step; who still waits gets EngineClosedError.

        Notes: from any thread, any number of times
        """
        with self._lock:
            self._is_closed = True
            thread = self._thread
            if thread is None:
                self._loop.end()
                return
            self._loop.inbox.put(None)
        if thread is not threading.current_thread():
            thread.join()

    def __del__(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._loop.inbox.put(None)
            if self._thread is None:
                self._engine.close()

    def _before_fork(self) -> None:
        self._loop.turnstile.acquire()
        self._loop.step_lock.acquire()

    def _after_fork_in_parent(self) -> None:
        self._loop.step_lock.release()
        self._loop.turnstile.release()

    def _after_fork_in_child(self) -> None:
        channels = self._loop.channels
        self._renew()
        if self._is_closed:
            return
        self._is_forked = True
        self._engine.reset()
        error = EngineClosedError("the request stayed with the parent of this forked process")
        for seq_id, channel in channels.items():
            if isinstance(channel, SimpleQueue):
                channel.put(StepOutput(seq_id, finish_reason="abort", error=error))


# What the interpreter's hooks need to know: who lives, and whom a fork is holding.
_workers: weakref.WeakSet[Worker] = weakref.WeakSet()
_held: list[Worker] = []


def _before_fork() -> None:
    for worker in list(_workers):
        worker._before_fork()
        _held.append(worker)


def _after_fork(action: Callable[[Worker], None]) -> Callable[[], None]:
    def run() -> None:
        while _held:
            action(_held.pop())

    return run


def _close_all() -> None:
    for worker in list(_workers):
        worker.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork(Worker._after_fork_in_parent),
        after_in_child=_after_fork(Worker._after_fork_in_child),
    )
atexit.register(_close_all)
