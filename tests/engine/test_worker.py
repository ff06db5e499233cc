"""Worker: one engine thread behind many threads and tasks; ends, drops, forks, closings."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeEngine
from hash_model import HashModel, ask, ids_of, true_row

from rllama.batch import Batch
from rllama.engine.request import StepOutput
from rllama.engine.worker import Worker
from rllama.errors import ConfigError, ContextFullError, EngineClosedError, OverloadedError

MakeWorker = Callable[..., Worker]
LONG = {"max_new_tokens": 90}


@pytest.fixture
def make_worker(make_engine: MakeEngine) -> Iterator[MakeWorker]:
    workers: list[Worker] = []

    def make(model: HashModel | None = None, **changes: object) -> Worker:
        workers.append(Worker(make_engine(model, **changes)))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


def greedy(prompt: list[int], n: int = 12) -> list[int]:
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(int(np.argmax(true_row(tokens))))
    return tokens[len(prompt) :]


class Gate:
    """Lets a model's forward through once per `step`, or always after `open`."""

    def __init__(self) -> None:
        self._semaphore = threading.Semaphore(0)
        self._is_open = False
        self.entered = threading.Event()

    def __call__(self, batch: Batch) -> None:
        self.entered.set()
        if not self._is_open:
            assert self._semaphore.acquire(timeout=20)

    def step(self) -> None:
        self._semaphore.release()

    def open(self) -> None:
        self._is_open = True
        self._semaphore.release()


def gated() -> tuple[HashModel, Gate]:
    model, gate = HashModel(), Gate()
    model.before = gate
    return model, gate


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it never came to that")


def engine_threads() -> int:
    return sum(t.name == "rllama-engine" for t in threading.enumerate())


def test_worker_yields_the_tokens_of_the_engine(make_worker: MakeWorker) -> None:
    worker = make_worker()
    assert ids_of(list(worker.submit(ask([1, 2, 3])))) == greedy([1, 2, 3])


def test_worker_starts_its_thread_with_the_first_call(make_worker: MakeWorker) -> None:
    before = engine_threads()
    worker = make_worker()
    assert engine_threads() == before
    list(worker.submit(ask([1])))
    assert engine_threads() == before + 1
    worker.close()
    assert engine_threads() == before


def test_worker_batches_many_threads_together(make_worker: MakeWorker) -> None:
    model, gate = gated()
    worker = make_worker(model)
    results: dict[int, list[int]] = {}

    def consume(i: int) -> None:
        results[i] = ids_of(list(worker.submit(ask([i, i + 1]))))

    threads = [threading.Thread(target=consume, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    engine = worker._engine
    wait_until(lambda: len(engine._runs) + worker._loop.inbox.qsize() == 8)
    gate.open()
    for thread in threads:
        thread.join(20)
    assert results == {i: greedy([i, i + 1]) for i in range(8)}
    assert max(model.batch_seqs) >= 7


def test_worker_serves_asyncio_tasks_and_threads_at_once(make_worker: MakeWorker) -> None:
    worker = make_worker()

    async def one(i: int) -> list[int]:
        return ids_of([output async for output in worker.submit_async(ask([i, 7]))])

    async def everything() -> list[list[int]]:
        sync = asyncio.to_thread(lambda: ids_of(list(worker.submit(ask([40, 7])))))
        return await asyncio.gather(*(one(i) for i in range(6)), sync)

    assert asyncio.run(everything()) == [greedy([i, 7]) for i in (*range(6), 40)]


def test_worker_refuses_bad_requests_where_they_are_made(make_worker: MakeWorker) -> None:
    worker = make_worker()
    with pytest.raises(ConfigError):
        worker.submit(ask([]))
    with pytest.raises(ContextFullError):
        worker.submit(ask([1] * 200))


def test_worker_errors_travel_to_the_consumer(make_worker: MakeWorker) -> None:
    model = HashModel()
    worker = make_worker(model)
    model.error = RuntimeError("the device is gone")
    with pytest.raises(RuntimeError, match="the device is gone"):
        list(worker.submit(ask([1])))
    assert ids_of(list(worker.submit(ask([1])))) == greedy([1])


def test_worker_errors_travel_to_the_task(make_worker: MakeWorker) -> None:
    model = HashModel()
    worker = make_worker(model)
    model.error = RuntimeError("the device is gone")

    async def consume() -> None:
        async for _ in worker.submit_async(ask([1])):
            pass

    with pytest.raises(RuntimeError, match="the device is gone"):
        asyncio.run(consume())


def test_worker_survives_an_engine_that_breaks(
    make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = make_worker()

    def break_once() -> list[StepOutput]:
        monkeypatch.undo()
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(worker._engine, "step", break_once)
    with pytest.raises(ZeroDivisionError):
        list(worker.submit(ask([1])))
    assert "starts afresh" in caplog.text
    assert ids_of(list(worker.submit(ask([1])))) == greedy([1])


def test_worker_dropped_outbox_aborts(make_worker: MakeWorker) -> None:
    model, gate = gated()
    worker = make_worker(model)
    outbox = worker.submit(ask([1, 2], **LONG))
    gate.step()
    next(outbox)
    del outbox
    gc.collect()
    gate.open()
    wait_until(lambda: not worker._engine.has_work)
    assert len(model.batch_tokens) <= 4
    assert worker._engine.kv.pools[0].n_available == 200


def test_worker_abort_gives_the_last_output(make_worker: MakeWorker) -> None:
    model, gate = gated()
    worker = make_worker(model)
    outbox = worker.submit(ask([1, 2], **LONG))
    gate.step()
    next(outbox)
    worker.abort(outbox.seq.id)
    gate.open()
    assert list(outbox)[-1].finish_reason == "abort"


def test_worker_cancelled_task_aborts(make_worker: MakeWorker) -> None:
    model, gate = gated()
    worker = make_worker(model)

    async def consume() -> None:
        async for _ in worker.submit_async(ask([1, 2], **LONG)):
            gate.step()

    async def cancel_soon() -> None:
        task = asyncio.create_task(consume())
        await asyncio.to_thread(gate.entered.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_soon())
    gate.open()
    wait_until(lambda: not worker._engine.has_work)
    assert worker._engine.kv.pools[0].n_available == 200


def test_worker_outlives_a_closed_event_loop(make_worker: MakeWorker) -> None:
    model, gate = gated()
    worker = make_worker(model)
    kept = []

    async def leave() -> None:
        kept.append(worker.submit_async(ask([1, 2])))

    asyncio.run(leave())
    gate.open()
    assert ids_of(list(worker.submit(ask([3])))) == greedy([3])


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_worker_interrupt_in_the_consumer_aborts(make_worker: MakeWorker) -> None:
    model, gate = gated()
    worker = make_worker(model)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        gate.entered.wait(20)
        time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    outbox = worker.submit(ask([1, 2], **LONG))
    with pytest.raises(KeyboardInterrupt):
        list(outbox)
    gate.open()
    wait_until(lambda: not worker._engine.has_work)
    assert ids_of(list(worker.submit(ask([3])))) == greedy([3])


def test_worker_full_queue_is_overloaded(make_worker: MakeWorker) -> None:
    model, gate = gated()
    worker = make_worker(model, max_seqs=1, max_waiting=2)
    running = worker.submit(ask([1]))
    gate.entered.wait(20)
    waiting = [worker.submit(ask([i])) for i in (2, 3)]
    with pytest.raises(OverloadedError, match="2 requests are waiting"):
        worker.submit(ask([4]))
    waiting.append(worker.submit(ask([4]), is_bounded=False))
    gate.open()
    got = [ids_of(list(outbox)) for outbox in (running, *waiting)]
    assert got == [greedy([i]) for i in (1, 2, 3, 4)]


def test_worker_call_runs_between_steps(make_worker: MakeWorker) -> None:
    worker = make_worker()
    outbox = worker.submit(ask([1, 2], **LONG))
    ids = [3, 4, 5]
    rows = worker.call(lambda engine: engine.logits(ids)).result(20)
    assert np.array_equal(rows[-1], true_row(ids))
    assert ids_of(list(outbox)) == greedy([1, 2], 90)


def test_worker_call_gives_its_error(make_worker: MakeWorker) -> None:
    worker = make_worker()
    with pytest.raises(ContextFullError):
        worker.call(lambda engine: engine.logits([1] * 200)).result(20)


def test_worker_idle_takes_no_cpu_time(make_worker: MakeWorker) -> None:
    worker = make_worker()
    list(worker.submit(ask([1])))
    thread = worker._thread
    assert thread is not None
    assert thread.ident is not None
    clock = time.pthread_getcpuclockid(thread.ident)
    before = time.clock_gettime(clock)
    time.sleep(0.2)
    assert time.clock_gettime(clock) - before < 0.01


def test_worker_close_tells_who_still_waits(make_worker: MakeWorker) -> None:
    model, gate = gated()
    worker = make_worker(model, max_seqs=1)
    outboxes = [worker.submit(ask([i], **LONG)) for i in range(3)]
    gate.entered.wait(20)
    closers = [threading.Thread(target=worker.close) for _ in range(2)]
    for closer in closers:
        closer.start()
    wait_until(lambda: worker._is_closed)
    gate.open()
    for outbox in outboxes:
        with pytest.raises(EngineClosedError):
            list(outbox)
    for closer in closers:
        closer.join(20)
        assert not closer.is_alive()
    worker.close()


def test_worker_close_tells_tasks_that_still_wait(make_worker: MakeWorker) -> None:
    model, gate = gated()
    worker = make_worker(model)

    async def consume() -> None:
        async for _ in worker.submit_async(ask([1], **LONG)):
            pass

    async def close_soon() -> None:
        task = asyncio.create_task(consume())
        await asyncio.to_thread(gate.entered.wait, 20)
        closing = asyncio.create_task(asyncio.to_thread(worker.close))
        await asyncio.to_thread(wait_until, lambda: worker._is_closed)
        gate.open()
        with pytest.raises(EngineClosedError):
            await task
        await closing

    asyncio.run(close_soon())


def test_worker_closed_refuses_everything(make_worker: MakeWorker) -> None:
    for start in (False, True):
        worker = make_worker()
        if start:
            list(worker.submit(ask([1])))
        worker.close()
        worker.close()
        for call in (
            lambda w=worker: w.submit(ask([1])),
            lambda w=worker: w.call(lambda engine: None),
        ):
            with pytest.raises(EngineClosedError):
                call()
        worker.abort(3)


def test_worker_close_in_its_own_thread(make_worker: MakeWorker) -> None:
    worker = make_worker()
    worker.call(lambda engine: worker.close()).result(20)
    wait_until(lambda: engine_threads() == 0)


def test_worker_dropped_without_close_ends(make_engine: MakeEngine) -> None:
    for start in (False, True):
        engine = make_engine()
        worker = Worker(engine)
        if start:
            list(worker.submit(ask([1])))
        del worker
        gc.collect()
        wait_until(lambda e=engine: e._is_closed)
    assert engine_threads() == 0


def run_forked(child: Callable[[], bool]) -> int:
    """Exit status of a forked child: 0 if it says True, 1 if not, -14 if it hangs."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            os._exit(0 if child() else 1)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
may_fork = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@needs_fork
@may_fork
@pytest.mark.parametrize("start", [False, True], ids=["unused", "used"])
def test_worker_works_after_fork(make_worker: MakeWorker, start: bool) -> None:
    worker = make_worker()
    if start:
        list(worker.submit(ask([1])))
    assert run_forked(lambda: ids_of(list(worker.submit(ask([5, 6])))) == greedy([5, 6])) == 0
    assert ids_of(list(worker.submit(ask([5, 6])))) == greedy([5, 6])


@needs_fork
@may_fork
def test_worker_fork_in_mid_generation(
    make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    model, gate = gated()
    worker = make_worker(model)
    outbox = worker.submit(ask([1, 2], **LONG))
    gate.step()
    first = next(outbox)

    def child() -> bool:
        assert not worker._engine.has_work, "the parent's request came along"
        gate.open()
        caplog.clear()
        try:
            list(outbox)
        except EngineClosedError:
            pass
        else:
            return False
        texts = [ids_of(list(worker.submit(ask([i])))) for i in range(3)]
        worker.close()
        lines = [r for r in caplog.records if r.levelno >= logging.WARNING]
        return texts == [greedy([i]) for i in range(3)] and len(lines) == 1

    threading.Timer(0.1, gate.step).start()  # the fork waits for the step that is running
    assert run_forked(child) == 0
    gate.open()
    assert ids_of([first, *outbox]) == greedy([1, 2], 90)


def test_worker_left_open_at_exit_ends_quietly() -> None:
    script = textwrap.dedent(
        """
        from hash_model import BASE, HashBackend, HashModel, ask
        from rllama.engine.engine import Engine
        from rllama.engine.worker import Worker
        worker = Worker(Engine(HashModel(), None, BASE, HashBackend()))
        outbox = worker.submit(ask([1, 2], max_new_tokens=90))
        next(outbox)
        """
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
