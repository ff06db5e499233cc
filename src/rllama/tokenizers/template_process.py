"""The process in which chat templates run: started when first needed, killed when it misbehaves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllama.errors import ConfigError, TemplateError

if TYPE_CHECKING:
    import subprocess

_SCRIPT = Path(__file__).with_name("_render.py")
_WALL_S = 10.0  # for machines that stand still; processor time has a limit of its own
_FAULTS = {
    "unsafe": "it reaches for what templates may not touch",
    "limit": "it exceeds its limits",
    "broken": "it does not work",
    "raised": "it refuses this conversation",
}


class BrokenTemplateError(TemplateError):
    """A template that ran into an error of its own."""


class TemplateProcess:
    """Renders one template at a time, for any number of threads.

    Notes:   one second of processor time and 64 MiB of memory per rendering, beyond what the
             request takes itself; a process that exceeds them is replaced by a new one
    Raises:  TemplateError for what a template does wrong; ConfigError if jinja2 is missing
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def render(self, source: str, variables: dict[str, Any], *, output_limit: int) -> str:
        """The text that a template makes of its variables, which must be plain JSON values.

        Units: output_limit in characters
        """
        request = {"source": source, "variables": variables, "output_limit": output_limit}
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            answer = json.loads(self._ask(line))
        if "text" in answer:
            return str(answer["text"])
        message = " ".join(str(answer["message"])[:1024].split())
        if answer["error"] == "missing":
            raise ConfigError(f"chat templates need the jinja2 package ({message}): "
                              "pip install jinja2")  # fmt: skip
        kind = BrokenTemplateError if answer["error"] == "broken" else TemplateError
        raise kind(f"{_FAULTS[answer['error']]}: {ascii_safe(message)}")

    def close(self) -> None:
        """End the process; a later rendering starts a new one."""
        with self._lock:
            self._drop()

    def __del__(self) -> None:
        self._drop()

    def _ask(self, line: bytes) -> bytes:
        for attempt in (1, 2):
            child = self._running()
            if os.name == "nt":  # no waiting for a pipe with a clock there: one process, one answer
                return self._only_answer(child, line)
            assert child.stdin is not None
            try:
                child.stdin.write(line)
                child.stdin.flush()
            except BrokenPipeError:  # it was ended from outside while it waited
                self._drop()
                if attempt == 1:
                    continue
                raise TemplateError("the process that renders templates does not start") from None
            return self._answer(child)
        raise AssertionError

    def _answer(self, child: subprocess.Popen[bytes]) -> bytes:
        assert child.stdout is not None
        parts: list[bytes] = []
        deadline = time.monotonic() + _WALL_S
        while not (parts and parts[-1].endswith(b"\n")):
            part = _read(child.stdout.fileno(), deadline - time.monotonic())
            if not part:
                timed_out = part is None
                fault = "time" if timed_out or self._ended_by_clock(child) else "memory"
                self._drop()
                raise TemplateError(f"{_FAULTS['limit']}: it uses too much {fault}")
            parts.append(part)
        return b"".join(parts)

    def _only_answer(self, child: subprocess.Popen[bytes], line: bytes) -> bytes:
        import subprocess

        try:
            answer, _ = child.communicate(line, timeout=_WALL_S)
        except subprocess.TimeoutExpired:
            raise TemplateError(f"{_FAULTS['limit']}: it uses too much time") from None
        finally:
            self._drop()
        return answer

    def _ended_by_clock(self, child: subprocess.Popen[bytes]) -> bool:
        return child.wait() == -getattr(signal, "SIGPROF", 0)

    def _running(self) -> subprocess.Popen[bytes]:
        child = self._child
        if child is not None and (self._owner != os.getpid() or child.poll() is not None):
            self._drop()
        if self._child is None:
            if not sys.executable:
                raise TemplateError("no Python interpreter is known to render templates with")
            import subprocess  # only those who chat pay for it

            self._owner = os.getpid()
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            assert self._child.stdin is not None
            self._child.stdin.write(json.dumps(sys.path).encode() + b"\n")
        return self._child

    def _drop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if self._owner == os.getpid():  # after a fork it is the parent's
            child.kill()
            child.wait()
        else:
            child.returncode = 0  # so that nobody waits for a process that is not ours


def _read(fd: int, timeout_s: float) -> bytes | None:
    """What a pipe gives next: b"" at its end, None if nothing comes in time."""
    import select

    ready, _, _ = select.select([fd], [], [], max(0.0, timeout_s))
    return os.read(fd, 1 << 16) if ready else None


def ascii_safe(text: str) -> str:
    """A stranger's words in a message: printable, on one line."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
