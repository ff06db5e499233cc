"""Print how many cases of bad files there are for each kind of file, and of each row with -v."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS), str(TESTS / "formats"), str(TESTS.parent / "src")]


def main() -> None:
    import catalogue

    counts = catalogue.cases_per_section()
    for name, n in {**counts, "together": sum(counts.values())}.items():
        print(f"{n:5}  {name}")
    if "-v" in sys.argv:
        rows = Counter(row for row, _ in catalogue.case_ids())
        for row, what in catalogue.ROWS.items():
            print(f"{rows[row] or '-':>5}  {row:<5} {catalogue.NOT_HERE.get(row, what)}")


if __name__ == "__main__":
    main()
