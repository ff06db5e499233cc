"""GGUF rows of the corpus of bad files: models in several files that do not belong together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from hostile_case import Case
from hostile_gguf import CFG, base
from writers import (
    I32,
    STRING,
    U16,
    U32,
    RawGguf,
    random_model,
    raw_gguf,
    small_vocab,
    split_gguf,
    write_pieces,
)

from rllama.errors import ConfigError, FormatError, UnsafeFileError

N = 3
OTHER = replace(CFG, ffn_dim=64)
Pieces = dict[str, RawGguf]
Edit = Callable[[Pieces], object]


def cases() -> Iterator[Case]:
    """All cases of split models."""
    for part in (_places, _numbers, _tensors, _links):
        yield from part()


def name(index: int, count: int = N) -> str:
    return f"tiny-{index + 1:05}-of-{count:05}.gguf"


def pieces_case(
    variant: str,
    edit: Edit,
    error: type[Exception] | None,
    fragment: str = "",
    opened: str = name(0),
    after: Callable[[Path], object] = lambda folder: None,
) -> Case:
    """A case that changes the three correct pieces, then their folder."""

    def make(folder: Path) -> Path:
        pieces = split_gguf(base(), N)
        edit(pieces)
        write_pieces(folder, pieces)
        after(folder)
        return folder / opened

    return Case("G60", variant, make, error, fragment)


def keep(pieces: Pieces) -> None:
    pass


def with_number(index: int, key: str, kind: int, value: object) -> Edit:
    def edit(pieces: Pieces) -> None:
        pieces[name(index)].kvs[key] = (kind, value)

    return edit


def _places() -> Iterator[Case]:
    for index in range(N):
        yield pieces_case(f"opened_by_piece_{index}", keep, None, opened=name(index))
    for index in range(1, N):
        for opened in (name(0), name(N - index)):
            yield pieces_case(
                f"without_piece_{index}_by_{opened[5:10]}",
                lambda pieces, index=index: pieces.pop(name(index)),
                FormatError,
                rf"file {index + 1} of 3, tiny-0000{index + 1}-of-00003\.gguf, is missing",
                opened,
            )
    for wrong in ("model", "tiny-1-of-3.gguf", "tiny-00001-of-00004.gguf", "x\n.gguf"):
        yield pieces_case(
            f"named_{wrong.encode().hex()}",
            keep,
            ConfigError,
            "split.count: one of the 3 files",
            wrong,
            lambda folder, wrong=wrong: (folder / name(0)).rename(folder / wrong),
        )
    yield pieces_case(
        "swapped",
        keep,
        FormatError,
        "split.no 2 and split.count 3, but its name says 1",
        after=_swap,
    )
    yield pieces_case(
        "one_is_empty", keep, FormatError, "is empty", after=lambda f: _cut(f / name(1), 0)
    )
    yield pieces_case(
        "one_is_cut", keep, FormatError, "beyond", after=lambda f: _cut(f / name(2), -40)
    )
    yield pieces_case(
        "one_is_a_folder", keep, FormatError, "is a folder", after=lambda f: _folder(f / name(1))
    )


def _swap(folder: Path) -> None:
    second, third = folder / name(1), folder / name(2)
    second.rename(folder / "aside")
    third.rename(second)
    (folder / "aside").rename(third)


def _cut(path: Path, end: int) -> None:
    path.write_bytes(path.read_bytes()[:end])


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _numbers() -> Iterator[Case]:
    for index, value in ((0, 1), (1, 0), (2, 3), (2, 65535)):
        yield pieces_case(
            f"piece_{index}_says_{value}",
            with_number(index, "split.no", U16, value),
            FormatError,
            f"split.no {value} and split.count 3, but its name says {index}",
        )
    for value in (1, 2, 4):
        yield pieces_case(
            f"second_of_{value}",
            with_number(1, "split.count", U16, value),
            FormatError,
            f"split.count {value}, but",
        )
    yield pieces_case(
        "count_is_text",
        with_number(0, "split.count", STRING, "3"),
        ConfigError,
        "split.count must be a whole number",
    )
    yield pieces_case(
        "no_is_negative",
        with_number(1, "split.no", I32, -1),
        ConfigError,
        "split.no must be a whole number",
    )
    yield pieces_case(
        "second_has_no_keys",
        lambda pieces: pieces[name(1)].kvs.clear(),
        FormatError,
        "split.no 0 and split.count 1, but",
    )
    for index in range(N):
        yield pieces_case(
            f"tensor_count_of_{index}",
            with_number(index, "split.tensors.count", I32, 99),
            FormatError,
            "split.tensors.count is 99, but its 3 files hold 11 tensors",
        )
    yield pieces_case(
        "65535_of_them",
        with_number(0, "split.count", U32, 65535),
        FormatError,
        "file 2 of 65535",
        name(0, 65535),
        lambda folder: (folder / name(0)).rename(folder / name(0, 65535)),
    )


def _tensors() -> Iterator[Case]:
    def twin(pieces: Pieces) -> None:
        pieces[name(1)].tensors.append(pieces[name(0)].tensors[0])

    def without_one(pieces: Pieces) -> None:
        pieces[name(1)].tensors.pop()

    def without_keys(pieces: Pieces) -> None:
        first = pieces[name(0)]
        first.kvs = {key: value for key, value in first.kvs.items() if key.startswith("split")}

    def of_another_model(pieces: Pieces) -> None:
        other = raw_gguf(OTHER, random_model(OTHER, 5), "F32", small_vocab(OTHER.vocab_size))
        pieces[name(2)] = split_gguf(other, N)[name(2)]

    yield pieces_case("of_another_model", of_another_model, ConfigError, "has the shape")
    yield pieces_case("twin", twin, FormatError, r"token_embd\.weight' is also in")
    yield pieces_case("one_tensor_less", without_one, FormatError, "tensors.count is 11.* hold 10")
    yield pieces_case("no_architecture", without_keys, ConfigError, "general.architecture")


def _links() -> Iterator[Case]:
    def outside(folder: Path) -> None:
        away = folder / "away"
        away.mkdir()
        (folder / name(1)).rename(away / name(1))
        os.symlink(away / name(1), folder / name(1))

    def inside(folder: Path) -> None:
        (folder / name(1)).rename(folder / "blob")
        os.symlink("blob", folder / name(1))

    def circle(folder: Path) -> None:
        (folder / name(1)).unlink()
        os.symlink(name(1), folder / name(1))

    yield pieces_case("link_outside", keep, UnsafeFileError, "leaves the folder", after=outside)
    yield pieces_case("link_inside", keep, None, after=inside)
    yield pieces_case("link_circle", keep, FormatError, "lead in a circle", after=circle)
