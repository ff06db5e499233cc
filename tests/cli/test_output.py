"""Colours, harmless text, progress bars."""

from __future__ import annotations

import io
import sys

import pytest

from rllama.cli import progress
from rllama.cli.output import TextOut, colour_of, harmless, note, one_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_rise_with_probability_and_stay_in_range() -> None:
    assert colour_of(0.0) == colour_of(-1.0) == 196
    assert colour_of(1.0) == colour_of(0.99) == 82
    assert len({colour_of(p / 10 + 0.05) for p in range(10)}) == 10


def test_harmless_shows_control_characters_and_leaves_the_rest() -> None:
    assert harmless("a\x1b[31m\x00\x7f\x9b\r") == r"a\x1b[31m\x00\x7f\x9b\x0d"
    assert harmless("ü 中文 🦊\n\t") == "ü 中文 🦊\n\t"


def test_one_line_never_leaves_its_line() -> None:
    assert one_line("a\nb\tc\x1b") == r"a\nb c\x1b"


def test_text_out_writes_nothing_for_empty_text() -> None:
    stream = io.BytesIO()
    TextOut(stream, terminal=True, colour=True).write("", 0.5)
    assert stream.getvalue() == b""


def test_text_out_lone_surrogates_do_not_break_the_stream() -> None:
    stream = io.BytesIO()
    TextOut(stream, terminal=False, colour=False).write("a\ud800b")
    assert stream.getvalue() == b"a?b"


def test_note_without_stderr_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    note("nobody hears this")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_progress_shows_what_takes_long(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = progress.Progress("reading", " tok", shown=True)
    bar(1, 100)
    assert terminal.getvalue() == ""
    clock[0] = 1.0
    bar(40, 100)
    assert "reading" in terminal.getvalue()
    assert "40.0/100" in terminal.getvalue()
    bar(100, 100)
    # Taken away: the line ends empty.
    assert terminal.getvalue().split("\r")[-1].strip() == ""


@pytest.mark.parametrize(("shown", "is_terminal"), [(False, True), (True, False)])
def test_progress_stays_hidden(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], shown: bool, is_terminal: bool
) -> None:
    stream = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    bar = progress.Progress("reading", " tok", shown=shown)
    clock[0] = 9.0
    bar(40, 100)
    bar.close()
    assert stream.getvalue() == ""
