"""Which regular expressions are run, and that what is run stays fast."""

from __future__ import annotations

import time

import pytest
from tokenizers import Regex, pre_tokenizers

from rllama.errors import FormatError, RllamaError, UnsupportedError
from rllama.tokenizers.patterns import PRES
from rllama.tokenizers.safe_pattern import safe_pattern

MEGABYTES = [
    "a", "A", "Ab", "1", " ", "\n", " \n", "  x", "!", "'", "'s", "\u0301", "\r\n\t", "中",
    "\u01c5", "x ", "é1", "/", "<|",
]  # fmt: skip
KNOWN = sorted({p for pre in PRES.values() for p in pre.patterns} - {r"(?<!\s)\s+$"})
MORE = [
    r"\d{1,3}", r" {2,}", r"\s+$", r"[^\n]+|[\n]+", "[0-9]", r"(?:'[sS]|'[tT])|\p{L}+|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+",
]  # fmt: skip


@pytest.mark.parametrize("pattern", KNOWN + MORE)
def test_pattern_of_a_model_is_run_in_linear_time(pattern: str) -> None:
    split = pre_tokenizers.Split(Regex(safe_pattern(pattern, "t")), "isolated")
    for unit in MEGABYTES:
        start = time.process_time()
        split.pre_tokenize_str(unit * (60_000 // len(unit)) + "x")
        assert time.process_time() - start < 3  # one that goes back costs minutes


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$", r"(.*)*", r"(x+x+)+y", r"a*b", r"\s*[\r\n]+", r"a+a+b", r"(?<=a+)b", r"(a|a)*b",
        r".*x", r"(?=a*b)", r"(a)\1", r"a{1,5}{1,5}b", r"[a-z]+$", r"(?:a|b)+c", r"a{3,}b",
        r"\p{L}*\p{L}*x", "", "a|", r"\s+(?!\S)x", r"a{1000}", r"a{1,99}b", r"[a&&[b]]+",
        r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+", r"\w+\w+\d", r"(?~a)b",
        r"a+?b", "a" * 20_000, r"(?:x*)", r"\G\s+",
    ],
)  # fmt: skip
def test_pattern_that_may_take_longer_is_refused(pattern: str) -> None:
    with pytest.raises(UnsupportedError, match=r"t: (the|a) pattern"):
        safe_pattern(pattern, "t")


@pytest.mark.parametrize(
    "pattern", ["(a", "a)", "[a", r"\p{Nothing}", "[z-a]", "*a", r"\x{", "a{2,1}b"]
)
def test_pattern_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(RllamaError, match="t: the pattern"):
        safe_pattern(pattern, "t")


def test_pattern_with_an_unknown_class_is_damage() -> None:
    with pytest.raises(FormatError, match="t: the pattern"):
        safe_pattern(r"\p{Nothing}", "t")


def test_last_spaces_are_found_where_they_were() -> None:
    ours = pre_tokenizers.Split(Regex(safe_pattern(r"\s+$", "t")), "isolated")
    plain = pre_tokenizers.Split(Regex(r"\s+$"), "isolated")
    for text in ("a b  ", " \n \nx \n", "\n\n", " a", "a \n b\t\n\n  c", "", "\u3000\n x  "):
        assert ours.pre_tokenize_str(text) == plain.pre_tokenize_str(text)
