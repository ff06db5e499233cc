"""Finds the names of control pieces in a text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rllama.tokenizers.vocabulary import CONTROL, USER_DEFINED, Vocabulary


class SpecialFinder:
    """Splits a text at the names of control pieces, longest first.

    Notes:   user-defined pieces take part in the search and stay in the text: the library
             recognises them by itself
    """

    def __init__(self, vocab: Vocabulary) -> None:
        self._ids: dict[str, int] = {}
        for i, kind in enumerate(vocab.types):
            if kind in (CONTROL, USER_DEFINED) and vocab.pieces[i]:
                name = vocab.pieces[i].decode()
                if kind == USER_DEFINED:
                    name = name.replace("\u2581", " ")
                self._ids.setdefault(name, i if kind == CONTROL else -1)
        self._lengths = sorted({len(name) for name in self._ids}, reverse=True)
        firsts = {re.escape(name[0]) for name in self._ids}
        self._starts = re.compile(f"[{''.join(sorted(firsts))}]") if firsts else None

    def split(self, text: str) -> Iterator[str | int]:
        """The text between control pieces, and their ids, in order; nothing empty."""
        done = pos = 0
        while self._starts and (match := self._starts.search(text, pos)):
            pos = match.start()
            name = self._name_at(text, pos)
            if name is None:
                pos += 1
                continue
            token_id = self._ids[name]
            if token_id >= 0:
                if pos > done:
                    yield text[done:pos]
                yield token_id
                done = pos + len(name)
            pos += len(name)
        if done < len(text):
            yield text[done:]

    def _name_at(self, text: str, pos: int) -> str | None:
        for length in self._lengths:
            name = text[pos : pos + length]
            if name in self._ids:
                return name
        return None
