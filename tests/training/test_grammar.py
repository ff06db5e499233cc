"""The story grammar: the same seed tells the same story, and the story is sound English."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

TRAINING = Path(__file__).parents[2] / "training"
sys.path.insert(0, str(TRAINING))
grammar = pytest.importorskip("grammar", reason="training/ is not part of an installed package")
sys.path.remove(str(TRAINING))

STORIES = 1000


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return [grammar.story(seed) for seed in range(STORIES)]


def test_grammar_equal_seeds_tell_equal_stories(stories: list[str]) -> None:
    assert [grammar.story(seed) for seed in range(50)] == stories[:50]


def test_grammar_first_story_is_pinned(stories: list[str]) -> None:
    assert stories[0].startswith("Once upon a time a clever beaver named Bella lived")


def test_grammar_lexicon_holds_every_word(stories: list[str]) -> None:
    missing = {word for text in stories for word in grammar.words_of(text)} - grammar.lexicon()
    assert not missing


def test_grammar_lexicon_is_not_a_catch_all() -> None:
    assert 1000 < len(grammar.lexicon()) < 3000
    assert not {"fhe", "para", "dragon", "nthe"} & grammar.lexicon()


@pytest.mark.parametrize(
    ("fault", "pattern"),
    [
        ("unreplaced placeholder", r"[{}<>\[\]|_=^]"),
        (
            "wrong article",
            r"\b[Aa] [aeiou]|\b[Aa]n (?!hour|honest)[^aeiou]|\b(a|an|the) (a|an|the|some) ",
        ),
        ("small letter after a full stop", r"(?<!Mr)(?<!Mrs)[.!?] [a-z]|\n[a-z]"),
        ("doubled mark", r"[.,]{2}|[!?][.,]|  |,\.|\s[.,!?]"),
        ("word said twice", r"\b(\w+) \1\b"),
        ("speech without mark", r"\w\" "),
    ],
)
def test_grammar_stories_are_free_of(stories: list[str], fault: str, pattern: str) -> None:
    found = [match[0] for text in stories for match in [re.search(pattern, text)] if match]
    found = [words for words in found if words not in ALLOWED]
    assert not found, f"{fault}: {found[:5]}"


ALLOWED = {"had had", "that that", "knock knock"}


def test_grammar_quotation_marks_are_balanced_in_each_paragraph(stories: list[str]) -> None:
    for text in stories:
        assert all(part.count('"') % 2 == 0 for part in text.split("\n\n")), text


def test_grammar_stories_are_distinct_and_of_a_readable_length(stories: list[str]) -> None:
    assert len(set(stories)) == STORIES
    lengths = [len(grammar.words_of(text)) for text in stories]
    assert min(lengths) >= 80
    assert max(lengths) <= 300


def test_grammar_openings_vary_and_the_demo_prompt_is_common(stories: list[str]) -> None:
    once = sum(text.startswith("Once upon a time") for text in stories)
    assert 0.4 < once / STORIES < 0.6
    assert len({" ".join(text.split()[:2]) for text in stories}) > 30


def test_grammar_every_plot_is_told() -> None:
    names = {grammar.Teller(seed).plot.name for seed in range(STORIES)}
    assert names == {path.stem for path in grammar.PLOT_DIR.glob("*.txt")}
    assert len(names) >= 12


def test_grammar_end_returns_to_the_hero(stories: list[str]) -> None:
    for seed, text in enumerate(stories[:200]):
        cast = grammar.Teller(seed).cast_of_story()
        first, *_, before_last, last = text.split("\n\n")
        assert cast["H"] in first, text
        assert cast["H"] in before_last + last or cast["F"] in before_last + last, text
