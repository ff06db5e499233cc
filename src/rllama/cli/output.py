"""The text on stdout: streamed, coloured on a terminal only, harmless there, raw in a pipe."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from typing import BinaryIO

# C0 except newline and tab, DEL, C1: what a terminal would obey instead of showing.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# From hardly likely (red) to certain (green), in xterm's 256 colours.
_COLOURS = (196, 202, 208, 214, 220, 226, 190, 154, 118, 82)


class TextOut:
    """Writes text to a stream as UTF-8, at once.

    Notes: probabilities colour the text if `colour`; control characters are shown instead of sent
           if `terminal`
    """

    def __init__(self, stream: BinaryIO, *, terminal: bool, colour: bool) -> None:
        self._stream = stream
        self._terminal = terminal
        self.colour = colour

    def write(self, text: str, probability: float | None = None) -> None:
        """Write and flush. Raises OSError, among them BrokenPipeError."""
        if not text:
            return
        shown = harmless(text) if self._terminal else text
        if self.colour and probability is not None:
            shown = f"\x1b[38;5;{colour_of(probability)}m{shown}\x1b[0m"
        self._stream.write(shown.encode("utf-8", "replace"))
        self._stream.flush()


def standard_output() -> TextOut:
    """Text to stdout, in the manner that fits what stdout is. Raises OSError if it is closed."""
    if sys.stdout is None:
        raise OSError("standard output is closed")
    terminal = sys.stdout.isatty()
    return TextOut(sys.stdout.buffer, terminal=terminal, colour=terminal and colours_wanted())


def colours_wanted() -> bool:
    """False where the environment asks for none (https://no-color.org) or cannot show them."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def colour_of(probability: float) -> int:
    """The colour of a probability, as a number of xterm's 256."""
    step = int(probability * len(_COLOURS))
    return _COLOURS[max(0, min(len(_COLOURS) - 1, step))]


def harmless(text: str) -> str:
    """`text` with control characters shown (ESC as \\x1b) instead of sent."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def one_line(text: str) -> str:
    """`text` without anything that would leave its line, for messages."""
    return harmless(text).replace("\n", "\\n").replace("\t", " ")


def note(text: str) -> None:
    """A line on stderr that is no error."""
    _tell(f"rllama: {text}")


def complain(text: str) -> None:
    """The one line on stderr that says what went wrong."""
    _tell(f"rllama: error: {text}")


def _tell(text: str) -> None:
    # A closed or full stderr is no reason to fail.
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(one_line(text) + "\n")
            sys.stderr.flush()


class NoteHandler(logging.Handler):
    """Shows the library's warnings as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def show_warnings() -> None:
    """Let the library's warnings out on stderr."""
    log = logging.getLogger("rllama")
    if not any(isinstance(handler, NoteHandler) for handler in log.handlers):
        log.addHandler(NoteHandler(logging.WARNING))
