"""Run a piece of Python in a process of its own: for tests that may crash, fork, or set limits."""

from __future__ import annotations

import os
import subprocess
import sys


def run_script(source: str, *args: str, timeout: float = 120.0, **env: str) -> str:
    """What the script prints. Fails with its end if it fails, crashes, or hangs."""
    __tracebackhide__ = True
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-X", "faulthandler", "-c", source, *args],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **env},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as expired:
        raise AssertionError(f"no end after {timeout} s: {expired.stdout!r}") from None
    if done.returncode != 0:
        end = (done.stdout[-300:] + done.stderr[-2000:]).strip()
        raise AssertionError(f"process ended with {done.returncode}: {end}")
    return done.stdout
