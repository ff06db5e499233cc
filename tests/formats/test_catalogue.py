"""No row of the catalogue of bad files without a case, and no case without a row."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from catalogue import ELSEWHERE, NOT_HERE, ROWS, SECTIONS, case_ids, cases_per_section, section

TESTS = Path(__file__).parents[1]
COUNTS = Counter(row for row, _ in case_ids())


@pytest.mark.parametrize("row", ROWS)
def test_row_has_a_case_or_names_its_tests_or_a_reason(row: str) -> None:
    if row in NOT_HERE:
        assert row not in ELSEWHERE
        assert COUNTS[row] == 0
        return
    named = ELSEWHERE.get(row, ())
    assert COUNTS[row] or named
    for name in named:
        path, _, function = name.partition("::")
        assert f"\ndef {function}(" in (TESTS / path).read_text(), name


def test_every_case_belongs_to_a_row_and_has_an_id_of_its_own() -> None:
    assert set(COUNTS) | set(ELSEWHERE) | set(NOT_HERE) <= set(ROWS)
    ids = [case_id for _, case_id in case_ids()]
    assert len(ids) == len(set(ids))


def test_no_number_of_a_section_is_left_out() -> None:
    """A row that is dropped is missed here; additions of our own begin at 60, controls are 0."""
    numbers: dict[str, set[int]] = {name: set() for name in SECTIONS}
    for row in ROWS:
        numbers[section(row)].add(int(row.removeprefix(SECTIONS[section(row)])))
    last = {name: max(n for n in found if n < 60) for name, found in numbers.items()}
    assert list(last.values()) == [56, 22, 23, 10, 20, 13, 4, 15]
    for name, found in numbers.items():
        assert set(range(1, last[name] + 1)) <= found


def test_corpus_is_as_large_as_the_documentation_says() -> None:
    text = (TESTS.parent / "docs" / "reliability.md").read_text()
    least = {letter: int(n) for letter, n in re.findall(r"\| ([A-Z]) \| (\d+) \|", text)}
    counts = {SECTIONS[name][0]: n for name, n in cases_per_section().items()}
    assert list(least) == list(counts)
    assert {letter: counts[letter] for letter in least if counts[letter] < least[letter]} == {}
