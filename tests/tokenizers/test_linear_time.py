"""A long run of anything takes linear time in every kind, and streams as it decodes whole."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path

import pytest
from random_texts import texts
from small_tokenizers import MAKERS, SPECIAL

from rllama import load_tokenizer
from rllama.config import TokenizerSource
from rllama.engine.detokenize import Detokenizer
from rllama.tokenizers import load_tokenizer as tokenizer_of
from rllama.tokenizers.base import Tokenizer

NAMED = ("<|", SPECIAL[1])
UNITS = (
    "a", " ", "\n", "7", "中", "😀", "👨\u200d👩\u200d👧", "\u0301", "us", "'", "a ", "\u2581",
)  # fmt: skip
NAMES = sorted(MAKERS)


@cache
def made(name: str) -> Tokenizer:
    return tokenizer_of(TokenizerSource(kind="json", fields=json.loads(MAKERS[name]())))


def slowest(tokenizer: Tokenizer, n_bytes: int) -> float:
    """Processor seconds for the unit that takes longest."""
    taken = []
    for unit in UNITS + NAMED:
        text = unit * (n_bytes // len(unit.encode()))
        start = time.process_time()
        assert tokenizer.encode(text, parse_special=unit in NAMED)
        taken.append(time.process_time() - start)
    return max(taken)


@pytest.mark.parametrize("name", NAMES)
def test_a_long_run_of_one_thing_takes_linear_time(name: str) -> None:
    assert slowest(made(name), 50_000) < 1  # in square time it would be minutes


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_megabyte_of_one_thing_takes_linear_time(name: str) -> None:
    assert slowest(made(name), 1_000_000) < 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["llama3/tokenizer.model", "vocab/ggml-vocab-llama-bpe.gguf", "llama2/tokenizer.model"]
)
def test_a_megabyte_of_one_thing_takes_linear_time_in_real_vocabularies(
    name: str, data_dir: Path
) -> None:
    assert slowest(load_tokenizer(data_dir / name), 1_000_000) < 3


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_streams_what_it_decodes_whole(name: str) -> None:
    tokenizer = made(name)
    for text in texts(160, 51, SPECIAL):
        ids = tokenizer.encode(text, parse_special=True)
        detokenizer = Detokenizer(tokenizer)
        shown = "".join(map(detokenizer.push, ids)) + detokenizer.flush()
        assert shown == tokenizer.decode(ids)
