"""Case: one bad file, how to make it, and what must be said about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One variant of a row of the catalogue.

    Notes:   `make` writes into an empty folder and returns the path to open; `error` None means
             that the file is legal and must open; `fragment` is a regular expression
    """

    row: str
    variant: str
    make: Callable[[Path], Path]
    error: type[Exception] | None
    fragment: str = ""

    @property
    def id(self) -> str:
        return f"{self.row}-{self.variant}"


def blob(
    row: str, variant: str, data: Callable[[], bytes], error: type[Exception] | None, fragment: str
) -> Case:
    """A case that is one file."""

    def make(folder: Path) -> Path:
        path = folder / "model"
        path.write_bytes(data())
        return path

    return Case(row, variant, make, error, fragment)
