"""Which regular expressions of a tokenizer.json are run: those that take linear time.

Notes:   the library's engine goes back and tries again; what is accepted here either matches or
         gives up after a bounded number of characters, wherever it starts, so nobody's text can
         make it slow
"""

from __future__ import annotations

import re
from itertools import pairwise

from rllama.errors import UnsupportedError
from rllama.tokenizers.library import guarded

_MAX_CHARS = 16_384
_MAX_REPEAT = 64
_CLASS = r"\[\^?(?:\\.|\[:\^?[a-z]+:\]|[^\]\[\\])+\]"
_ATOM = rf"(?:{_CLASS}|\\[pP]\{{\^?\w+\}}|\\[sSdDwWhHrntfv]|\\[^\w]|[^\\\[\](){{}}|.*+?^$])"
_CHOICE = rf"{_ATOM}+(?:\|{_ATOM}+)*"
_STEP = re.compile(
    rf"(?P<group>\((?:\?:|\?i:)?{_CHOICE}\)(?P<maybe>\?\+?)?)"
    rf"|(?P<atom>{_ATOM})(?P<many>[?*+]\+?|\{{(?P<low>\d{{1,4}})(?:,(?P<high>\d{{0,4}}))?\}})?"
    r"|(?P<look>\(\?!\\S\)$)",
    re.DOTALL,
)
# These look at a whole run before they give up; what stands behind the arrow then takes the run.
_SCANS = {r"\s*[\r\n]+": r"\s+(?!\S)", r"\s*[\r\n]": r"\s+(?!\S)"}
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED, _CAPITALS = f"{_UPPER}*{_LOWER}+", f"{_UPPER}+{_LOWER}*"
_LAST_SPACES = r"\s+$"


def safe_pattern(pattern: str, where: str) -> str:
    """The pattern, or one that matches the same in linear time.

    Raises:  UnsupportedError for a pattern that is not known to be harmless, FormatError for one
             that is none
    """
    if pattern == _LAST_SPACES:
        return r"(?<!\s)\s+$"  # a match begins where its run begins: tried once per run
    if len(pattern) > _MAX_CHARS:
        raise UnsupportedError(f"{where}: a pattern of {len(pattern)} characters; at most "
                               f"{_MAX_CHARS} are accepted")  # fmt: skip
    choices = _choices(pattern)
    if not all(_is_harmless(choice, choices[i + 1 :]) for i, choice in enumerate(choices)):
        raise UnsupportedError(f"{where}: the pattern {ascii(pattern)[:120]} may take more than "
                               "linear time and is not run")  # fmt: skip
    from tokenizers import Regex

    guarded(lambda: Regex(pattern), f"{where}: the pattern {ascii(pattern)[:120]}")
    return pattern


def _choices(pattern: str) -> list[str]:
    """The alternatives of the outermost level."""
    depth, in_class, cuts, i = 0, False, [-1], 0
    while i < len(pattern):
        char = pattern[i]
        if char == "\\":
            i += 1
        elif in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif char == "|" and depth == 0:
            cuts.append(i)
        i += 1
    return [pattern[a + 1 : b] for a, b in pairwise([*cuts, len(pattern)])]


def _is_harmless(choice: str, later: list[str]) -> bool:
    """Whether an alternative matches or gives up soon, or what it gives up is taken later."""
    if choice in _SCANS:
        return _SCANS[choice] in later
    if _CASED in choice:
        return choice.replace(_CASED, _CAPITALS, 1) in later and _goes_on(
            choice.replace(_CASED, _CAPITALS, 1)
        )
    return _goes_on(choice)


def _goes_on(choice: str) -> bool:
    """Whether at most the first unbounded repetition can fail, and that at its first character."""
    at, is_open = 0, False
    while at < len(choice):
        step = _STEP.match(choice, at)
        if step is None:
            return False
        at = step.end()
        if step["look"]:
            return choice in (r"\s+(?!\S)", r"\s++(?!\S)")
        if step["group"]:
            if is_open and not step["maybe"]:
                return False
            continue
        many = step["many"] or ""
        if is_open and many[:1] not in ("?", "*"):
            return False
        if many[:1] in ("*", "+") or step["high"] == "":
            is_open = True
        low, high = step["low"] or "1", step["high"] or step["low"] or "1"
        if not 0 < int(high) <= _MAX_REPEAT or int(low) > int(high):
            return False
    return at > 0
