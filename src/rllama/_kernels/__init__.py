"""The compiled kernels. Importing this package loads `core` with a well-behaved threads library.

libgomp reads its settings from the environment once, when it is loaded. Left alone, an idle thread
spins for milliseconds before it sleeps: on a machine with other work that takes the processor from
the very thread that is waited for, and a small model becomes a hundred times slower. A short spin
bridges the microseconds between two ops and no more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

SPIN_COUNT = "1000"  # rounds of waiting, together some 20 us


@contextmanager
def _settings() -> Iterator[None]:
    """The environment as libgomp should see it; what the user has set sensibly stays."""
    changes: dict[str, str | None] = {}
    if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
        changes["GOMP_SPINCOUNT"] = SPIN_COUNT
    if not _is_thread_list(os.environ.get("OMP_NUM_THREADS", "1")):
        changes["OMP_NUM_THREADS"] = None  # libgomp would complain in words of its own
    before = {name: os.environ.get(name) for name in changes}
    _apply(changes)
    try:
        yield
    finally:
        _apply(before)


def _apply(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _is_thread_list(value: str) -> bool:
    try:
        return all(int(part) > 0 for part in value.split(","))
    except ValueError:
        return False


with _settings():
    from rllama._kernels import core

__all__ = ["core"]
