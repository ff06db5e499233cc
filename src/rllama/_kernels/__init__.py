"""The compiled kernels. Importing this package loads `core`, and with it the threads library."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _without_unusable_threads() -> Iterator[None]:
    """libgomp reads the environment once, when it is loaded, and complains in words of its own."""
    value = os.environ.get("OMP_NUM_THREADS", "1")
    if _is_thread_list(value):
        yield
        return
    del os.environ["OMP_NUM_THREADS"]
    try:
        yield
    finally:
        os.environ["OMP_NUM_THREADS"] = value


def _is_thread_list(value: str) -> bool:
    try:
        return all(int(part) > 0 for part in value.split(","))
    except ValueError:
        return False


with _without_unusable_threads():
    from rllama._kernels import core

__all__ = ["core"]
