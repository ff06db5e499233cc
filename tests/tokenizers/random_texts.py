"""Texts that tokenizers disagree about: random characters, runs, contractions, code, names."""

from __future__ import annotations

import random
from collections.abc import Iterator

_BITS = [
    "a", "B", "é", " ", "  ", "\n", "\t", "'s", "'S", "'ll", "\u017f", "'\u017f", "1", "23", "½",
    "中", "日本", "😀", "👨\u200d👩\u200d👧", "\u0301", "!", "//", "\r\n", "\u00a0", "\u200d",
    "\u212a", "\x1c", "\x85", "\0", "\u2581", "\u3000", "Ab", "HTTPServer", "don't", "wolf", "over",
    "the", " the", "<", ">", "|", "\ufeff", "\u01c5", "٣", "मा", "ไทย",
]  # fmt: skip
_CODE = ["def f(x):\n", "    return x[%d]\n", "\tif (a != b) {\n", "}\n", "x += 'it''s'; // %d\n"]
_RUNS = " \n\t\r\u3000a1!é中"


def texts(n: int, seed: int, names: tuple[str, ...] = ()) -> Iterator[str]:
    """So many texts; `names` of special tokens are strewn in."""
    rng = random.Random(seed)
    for i in range(n):
        yield _MAKERS[i % len(_MAKERS)](rng, names)


def _any(rng: random.Random, names: tuple[str, ...]) -> str:
    points = (
        rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]) for _ in "x" * 30
    )
    return "".join(map(chr, points))


def _low(rng: random.Random, names: tuple[str, ...]) -> str:
    return "".join(chr(rng.randrange(0x3000)) for _ in range(rng.randrange(40)))


def _bits(rng: random.Random, names: tuple[str, ...]) -> str:
    return "".join(rng.choice(_BITS + list(names)) for _ in range(rng.randrange(30)))


def _names(rng: random.Random, names: tuple[str, ...]) -> str:
    return "".join(rng.choice(["the ", " wolf", *names] if names else _BITS) for _ in range(9))


def _code(rng: random.Random, names: tuple[str, ...]) -> str:
    lines = (rng.choice(_CODE) for _ in range(rng.randrange(6)))
    return "".join(line % rng.randrange(10**6) if "%" in line else line for line in lines)


def _run(rng: random.Random, names: tuple[str, ...]) -> str:
    return rng.choice(_RUNS) * rng.randrange(120) + rng.choice(["", "x", " ", "\n", "é"])


def _emoji(rng: random.Random, names: tuple[str, ...]) -> str:
    return "".join(chr(rng.randrange(0x1F300, 0x1FB00)) for _ in range(12))


_MAKERS = (_any, _low, _bits, _names, _code, _run, _emoji, _bits)
