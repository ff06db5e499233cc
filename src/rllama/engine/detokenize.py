"""Turns token ids into text as they come: never half a character, never part of a stop text."""

from __future__ import annotations

import re
from codecs import utf_8_decode
from collections.abc import Sequence

from rllama.tokenizers.base import Tokenizer


class Detokenizer:
    """The text of one sequence's new tokens.

    Notes:   bytes that do not yet make a character are held, and so is text that may be the start
             of a stop text; where two stop texts end at the same character the longer one counts,
             else the one that ends first. All pushes and the flush together are the text of the
             ids up to the stop, with U+FFFD where it is not UTF-8. The space in front of the
             first word goes only if the prompt has no text of its own.
    Units:   cost per push is proportional to the token's own text, whatever came before
    """

    __slots__ = ("_bytes", "_fresh", "_matcher", "_tokenizer", "stopped")

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = (), stop: tuple[str, ...] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._bytes = b""  # up to three bytes of an unfinished character
        self._fresh = not any(map(tokenizer.piece_bytes, prompt_ids))
        self._matcher = _StopMatcher(stop) if stop else None
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Take one more token; returns the text that is now certain, possibly empty."""
        piece_bytes = self._first_bytes if self._fresh else self._tokenizer.piece_bytes
        data = piece_bytes(token_id)
        if self._bytes or not data.isascii():
            data = self._bytes + data
            text, n_done = utf_8_decode(data, "replace", False)
            self._bytes = data[n_done:]
        else:
            text = data.decode("ascii")
        return text if self._matcher is None else self._released(text)

    def flush(self) -> str:
        """The text that is still held, at the end of a sequence."""
        text = self._bytes.decode("utf-8", "replace")
        self._bytes = b""
        if self._matcher is None:
            return text
        return self._released(text) + self._matcher.take_held()

    def _first_bytes(self, token_id: int) -> bytes:
        if not self._tokenizer.piece_bytes(token_id):
            return b""  # BOS and its like: the text has not begun
        self._fresh = False
        return self._tokenizer.decode_bytes((token_id,))

    def _released(self, text: str) -> str:
        assert self._matcher is not None
        if self.stopped:
            return ""
        released, self.stopped = self._matcher.feed(text)
        return released


class _StopMatcher:
    """Knuth-Morris-Pratt over all stop texts at once; holds the longest unfinished match."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(dict.fromkeys(stops))
        self._borders = tuple(map(_borders, self._stops))
        self._matched = [0] * len(self._stops)
        self._held = ""
        firsts = {re.escape(stop[0]) for stop in self._stops}
        self._starts = re.compile(f"[{''.join(sorted(firsts))}]")

    def feed(self, text: str) -> tuple[str, bool]:
        """Text that is free to go, and whether a stop text was completed."""
        if not self._held and not self._starts.search(text):
            return text, False
        held = self._held + text
        for i, char in enumerate(text, len(self._held) + 1):
            n_stop = self._advance(char)
            if n_stop:
                self._held = ""
                return held[: i - n_stop], True
        n_free = len(held) - max(self._matched)
        self._held = held[n_free:]
        return held[:n_free], False

    def take_held(self) -> str:
        """What is held, which after the end can no longer become a stop text."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held

    def _advance(self, char: str) -> int:
        """Take one character; the length of the longest stop text that it completes, or 0."""
        completed = 0
        for k, stop in enumerate(self._stops):
            n_matched = self._matched[k]
            while n_matched and stop[n_matched] != char:
                n_matched = self._borders[k][n_matched]
            n_matched += stop[n_matched] == char
            self._matched[k] = n_matched
            if n_matched == len(stop):
                completed = max(completed, n_matched)
        return completed


def _borders(stop: str) -> list[int]:
    """For each length of a beginning of `stop`: its longest proper end that is one too."""
    borders = [0, 0]
    for char in stop[1:]:
        n_matched = borders[-1]
        while n_matched and stop[n_matched] != char:
            n_matched = borders[n_matched]
        borders.append(n_matched + (stop[n_matched] == char))
    return borders
