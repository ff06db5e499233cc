"""The same request gives the same tokens: alone or in a crowd, however it is cut or threaded."""

from __future__ import annotations

import pytest

from rllama import LLM, SamplingParams
from rllama._kernels import core

PROMPTS = [
    "Once upon a time",
    "One day",
    "The little fox",
    "Mia",
    "In a small village by the sea there was a house, and in the house there lived",
    "Tom had a red ball and",
    "It was a rainy morning",
    "Grandma said",
    "A secret door",
    "Ben and Lily went to the forest because they wanted to find the old oak tree. They walked "
    "for a long time. The sky was grey and the wind was cold. Then they heard a sound, and they "
    "stopped. It was a small bird with a broken wing. They wanted to help it at once, "
    "for they knew how cold the night would be, so they took it home and",
]
GREEDY = SamplingParams(temperature=0, max_new_tokens=60)
SEEDED = SamplingParams(
    temperature=0.9, top_k=0, top_p=0.95, repetition_penalty=1.1, seed=7, max_new_tokens=60
)


@pytest.fixture(scope="module")
def alone() -> dict[str, list[list[int]]]:
    """Each prompt by itself, one thread, no shared prefixes."""
    with LLM(n_threads=1, share_prefixes=False) as llm:
        return {
            name: [list(llm.generate(p, params).token_ids) for p in PROMPTS]
            for name, params in (("greedy", GREEDY), ("seeded", SEEDED))
        }


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
def test_ten_prompts_together_chunked_and_threaded_equal_alone(
    alone: dict[str, list[list[int]]], n_threads: int, chunk: int
) -> None:
    with LLM(n_threads=n_threads, max_batch_tokens=chunk) as llm:
        for name, params in (("greedy", GREEDY), ("seeded", SEEDED)):
            together = [list(c.token_ids) for c in llm.generate(PROMPTS, params)]
            assert together == alone[name]


def test_cached_prefix_gives_the_same_tokens(alone: dict[str, list[list[int]]]) -> None:
    with LLM(n_threads=2) as llm:
        first = llm.generate(PROMPTS[-1], SEEDED)
        again = llm.generate(PROMPTS[-1], SEEDED)
    assert again.stats.n_cached_tokens > 0
    assert list(first.token_ids) == list(again.token_ids) == alone["seeded"][-1]


def test_preempted_sequences_give_the_same_tokens(alone: dict[str, list[list[int]]]) -> None:
    with LLM(n_threads=2, max_seq_len=256, n_pages=9) as llm:
        together = [list(c.token_ids) for c in llm.generate(PROMPTS, SEEDED)]
    assert together == alone["seeded"]


def test_greedy_text_and_logits_are_equal_at_every_isa_level() -> None:
    params = SamplingParams(temperature=0, max_new_tokens=200, ignore_eos=True)
    texts, logits = {}, {}
    for isa in (name for name, _, usable in core.isa_levels() if usable):
        with LLM(isa=isa, n_threads=2) as llm:
            texts[isa] = llm.generate("Once upon a time", params).text
            logits[isa] = llm.logits(llm.tokenize(PROMPTS[-1])).tobytes()
    assert len(set(texts.values())) == 1, texts
    # Quantised weights: whole-number sums, and every float added in one order at all levels.
    assert len(set(logits.values())) == 1, "logits differ between ISA levels"
