"""Every family against transformers: the same weights, the same logits, however the tokens come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models.hf_families import (
    CASES,
    FAST,
    N_TOKENS,
    hf_greedy,
    hf_logits,
    random_hf_model,
    save_hf,
)
from models.runner import in_chunks, open_runner, relative_error

from rllama import LLM, SamplingParams

pytest.importorskip("torch")
pytest.importorskip("transformers")

BOUND = 2e-4  # of the largest logit: f32 sums in other orders, and angles that transformers rounds
N_GREEDY = 12


def cases(fast: tuple[str, ...]) -> list[Any]:
    """All families; those that are not named belong to the long tier."""
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in CASES]


def random_ids(n_vocab: int, seed: int = 7) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(3, n_vocab, N_TOKENS)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of transformers and its folder by name, made once."""
    cache: dict[str, tuple[Any, Path]] = {}

    def make(name: str) -> tuple[Any, Path]:
        if name not in cache:
            model = random_hf_model(CASES[name], seed=len(name))
            cache[name] = model, save_hf(model, tmp_path_factory.mktemp(name))
        return cache[name]

    return make


@pytest.mark.parametrize("name", cases(FAST))
def test_family_logits_are_those_of_transformers(name: str, made: Any) -> None:
    model, folder = made(name)
    ids = random_ids(model.config.vocab_size)
    want = hf_logits(model, ids)
    spread = want.std(axis=1).mean() / np.abs(want).max()
    assert spread > 0.05, "flat logits prove nothing"
    n_context = CASES[name].max_seq_len or N_TOKENS
    for size in (N_TOKENS, 64, 7):
        got = in_chunks(open_runner(folder, n_context), ids, size)
        assert relative_error(got, want) < BOUND, f"in pieces of {size}"


@pytest.mark.parametrize("name", cases(("mistral", "gemma3", "phi3_partial")))
def test_family_greedy_text_is_that_of_transformers(name: str, made: Any) -> None:
    model, folder = made(name)
    ids = random_ids(model.config.vocab_size, seed=8)[: N_TOKENS - N_GREEDY]
    want = hf_greedy(model, ids, N_GREEDY)
    n_context = CASES[name].max_seq_len or N_TOKENS
    params = SamplingParams(temperature=0, max_new_tokens=N_GREEDY, ignore_eos=True)
    with LLM(folder, max_seq_len=n_context, n_threads=1) as llm:
        assert list(llm.generate(ids, params).token_ids) == want
