"""A child of fork goes on in one thread: same results, one log line, never a hang."""

from __future__ import annotations

import os
from textwrap import dedent

import pytest
from kernels.process import run_script

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

SETUP = """
import gc, logging, os, sys, threading, time
import numpy as np
from kernels.cases import matmul, random_weight, random_x
from rllama.cpu import CpuBackend

logging.basicConfig(stream=sys.stdout, format="%(message)s")
case, x = random_weight("Q8_0", 515, 512, seed=1), random_x(64, 512, seed=2)

def result(backend):
    return matmul(backend, x, case.weight)[0].tobytes()

def in_child(work):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            ok = work()
            sys.stdout.flush()
        except BaseException as error:
            print(repr(error), flush=True)
            ok = False
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0, "child failed"
"""


def run(body: str) -> list[str]:
    return run_script(SETUP + dedent(body), timeout=60).splitlines()


def test_fork_child_goes_on_serially_with_equal_results() -> None:
    said = run("""
        backend = CpuBackend(n_threads=2)
        want = result(backend)
        in_child(lambda: backend.is_serial and result(backend) == want)
        assert not backend.is_serial and result(backend) == want
    """)
    assert said == ["after fork the kernels of this process run in one thread"]


def test_fork_child_makes_its_own_backend() -> None:
    run("""
        backend = CpuBackend(n_threads=2)
        want = result(backend)
        def work():
            own = CpuBackend(n_threads=2)
            return own.is_serial and result(own) == want
        in_child(work)
    """)


def test_fork_after_the_parents_backend_is_gone() -> None:
    """The threads library is started all the same, so the child must not use it."""
    run("""
        backend = CpuBackend(n_threads=2)
        want = result(backend)
        del backend
        gc.collect()
        in_child(lambda: result(CpuBackend(n_threads=2)) == want)
    """)


def test_fork_before_any_backend_leaves_the_child_its_threads() -> None:
    said = run("""
        def work():
            own = CpuBackend(n_threads=2)
            return not own.is_serial and result(own) == result(CpuBackend(n_threads=1))
        in_child(work)
    """)
    assert said == []


def test_fork_while_an_op_runs_frees_the_context_in_the_child() -> None:
    run("""
        backend = CpuBackend("scalar", n_threads=2)
        want = result(backend)
        big, rows = random_weight("F32", 1000, 512, seed=3).weight, random_x(64, 512, seed=4)
        running, enough = threading.Event(), threading.Event()
        def ops():
            while not enough.is_set():
                running.set()
                matmul(backend, rows, big)
        thread = threading.Thread(target=ops)
        thread.start()
        running.wait()
        for _ in range(5):
            time.sleep(0.01)
            in_child(lambda: result(backend) == want)
        enough.set()
        thread.join()
        assert result(backend) == want
    """)


def test_fork_grandchild_works_too() -> None:
    run("""
        backend = CpuBackend(n_threads=2)
        want = result(backend)
        in_child(lambda: (in_child(lambda: result(backend) == want), True)[1])
    """)
