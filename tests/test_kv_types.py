"""The type of the cache: 8 bits give the same tokens however they run, and nearly the same text."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from rllama import LLM, SamplingParams
from rllama._kernels import core

STORY = (
    "Once upon a time there was a small bird who lived in an old oak tree. Every morning the bird "
    "sang a song for the other animals of the forest. One day the wind was so cold that nobody "
    "came to listen. The bird was sad, but then a little fox looked up and said that it had heard "
    "every song, and that it would like to hear one more. So they sat together and the bird sang"
)
PROMPTS = [STORY, "Mia", "Tom had a red ball and", STORY[:200] + " but", "One day"]
GREEDY = SamplingParams(temperature=0, max_new_tokens=100, ignore_eos=True)
SEEDED = SamplingParams(temperature=0.9, seed=7, max_new_tokens=100, ignore_eos=True)


def tokens(llm: LLM, params: SamplingParams) -> list[list[int]]:
    return [list(c.token_ids) for c in llm.generate(PROMPTS, params)]


@pytest.fixture(scope="module")
def alone() -> list[list[list[int]]]:
    with LLM(n_threads=1, share_prefixes=False, kv_dtype="q8_0") as llm:
        return [
            [list(llm.generate(p, params).token_ids) for p in PROMPTS]
            for params in (GREEDY, SEEDED)
        ]


@pytest.mark.parametrize(
    "options",
    [{"max_batch_tokens": 7}, {"max_batch_tokens": 512}, {"max_seq_len": 256, "n_pages": 5}],
    ids=["chunked", "together", "preempted"],
)
def test_q8_0_cache_gives_the_same_tokens_as_alone(
    alone: list[list[list[int]]], options: dict[str, int]
) -> None:
    with LLM(n_threads=2, kv_dtype="q8_0", **options) as llm:  # type: ignore[arg-type]
        assert [tokens(llm, params) for params in (GREEDY, SEEDED)] == alone
        assert "n_pages" not in options or llm._engine.scheduler.n_preempted > 0


def test_q8_0_cached_prefix_gives_the_same_tokens(alone: list[list[list[int]]]) -> None:
    with LLM(n_threads=2, kv_dtype="q8_0") as llm:
        first, again = llm.generate(STORY, SEEDED), llm.generate(STORY, SEEDED)
    assert again.stats.n_cached_tokens > 0
    assert list(first.token_ids) == list(again.token_ids) == alone[1][0]


def log_probs(llm: LLM, ids: list[int]) -> NDArray[np.float64]:
    z = np.asarray(llm.logits(ids), dtype=np.float64)
    z -= z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def test_q8_0_logits_stay_close_to_those_of_an_f32_cache() -> None:
    """Divergence in nats per token: here about 0.0009 on average."""
    with LLM(n_threads=2, kv_dtype="f32") as llm:
        ids = llm.tokenize(STORY)
        want = log_probs(llm, ids)
    with LLM(n_threads=2, kv_dtype="q8_0") as llm:
        got = log_probs(llm, ids)
    divergence = (np.exp(want) * (want - got)).sum(axis=1)
    assert 0 < divergence.mean() < 2e-3
    assert divergence.max() < 3e-2
    assert (want.argmax(axis=1) == got.argmax(axis=1)).mean() > 0.97


def test_q8_0_greedy_text_is_as_likely_as_that_of_an_f32_cache() -> None:
    """Told by the model with the f32 cache: the mean log probability of each new token."""
    params = SamplingParams(temperature=0, max_new_tokens=150, ignore_eos=True)
    with LLM(n_threads=2, kv_dtype="q8_0") as llm:
        told = [llm.generate(p, params) for p in PROMPTS[1:]]
    with LLM(n_threads=2, kv_dtype="f32") as llm:
        likely = {}
        for kind in ("q8_0", "f32"):
            mean = []
            for prompt, other in zip(PROMPTS[1:], told, strict=True):
                text = other if kind == "q8_0" else llm.generate(prompt, params)
                ids = [*llm.tokenize(prompt), *text.token_ids]
                new = range(len(ids) - len(text.token_ids), len(ids))
                rows = log_probs(llm, ids)
                mean.append(np.mean([rows[i - 1, ids[i]] for i in new]))
            likely[kind] = np.mean(mean)
    assert likely["q8_0"] > likely["f32"] - 0.1


def test_q8_0_logits_are_equal_at_every_isa_level() -> None:
    logits = {}
    for isa in (name for name, _, usable in core.isa_levels() if usable):
        with LLM(isa=isa, n_threads=2, kv_dtype="q8_0") as llm:
            logits[isa] = llm.logits(llm.tokenize(STORY)).tobytes()
    assert len(set(logits.values())) == 1
