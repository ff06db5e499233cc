"""torch rows of the corpus of bad files: Hugging Face folders whose weights are torch files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile_case import Case
from hostile_safetensors import CFG, MODEL
from hostile_torch import GOOD_PICKLE
from torch_writers import name, pickle_of, torch_zip, write_hf_torch

from rllama.errors import ConfigError, FormatError, UnsafeFileError

SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
INDEX = "pytorch_model.bin.index.json"


def cases() -> Iterator[Case]:
    """All cases of such folders."""
    yield from _index()
    yield from _files()


def folder_case(
    row: str,
    variant: str,
    edit: Callable[[Path], object],
    error: type[Exception],
    fragment: str,
    n_shards: int = 2,
) -> Case:
    """A case that changes a correct folder."""

    def make(folder: Path) -> Path:
        write_hf_torch(folder, CFG, MODEL, "F32", n_shards)
        edit(folder)
        return folder

    return Case(row, f"torch_{variant}", make, error, fragment)


def _index() -> Iterator[Case]:
    def mapped(value: object) -> Callable[[Path], object]:
        def edit(folder: Path) -> None:
            raw = json.loads((folder / INDEX).read_text())
            raw["weight_map"]["model.norm.weight"] = value
            (folder / INDEX).write_text(json.dumps(raw))

        return edit

    for variant, value in (("parent", "../x.bin"), ("absolute", "/etc/passwd"), ("nul", "a\0b")):
        yield folder_case("S17", variant, mapped(value), UnsafeFileError, "only plain file names")
    for variant, value, words in (
        ("missing_shard", "none.bin", "which is missing"),
        ("in_the_other_shard", SHARDS[0], "is not in"),
        ("file_name_number", 7, "no file name"),
    ):
        yield folder_case("S18", variant, mapped(value), FormatError, words)
    for variant, text in (("list", "[]"), ("cut", '{"weight_map":')):
        yield folder_case(
            "S18",
            f"index_{variant}",
            lambda folder, t=text: (folder / INDEX).write_text(t),
            FormatError,
            "JSON|weight_map",
        )


def _files() -> Iterator[Case]:
    def with_file(data: Callable[[bytes], bytes]) -> Callable[[Path], object]:
        def edit(folder: Path) -> None:
            path = folder / "pytorch_model.bin"
            path.write_bytes(data(path.read_bytes()))

        return edit

    call = torch_zip(pickle_of(name("os", "system") + b")R"), {}).to_bytes()
    for row, variant, data, error, words in (
        ("P-1", "call", lambda _: call, UnsafeFileError, "os.system"),
        ("P-15", "raw_pickle", lambda _: GOOD_PICKLE, UnsafeFileError, "a bare pickle"),
        ("P-15", "empty", lambda _: b"", FormatError, "empty"),
        ("P-19", "cut", lambda good: good[: len(good) // 2], FormatError, "trunc|zip"),
    ):
        yield folder_case(row, variant, with_file(data), error, words, 1)
    yield folder_case(
        "C1", "no_config", lambda folder: (folder / "config.json").unlink(), FormatError, "config"
    )
    yield folder_case(
        "C2",
        "config_cut",
        lambda folder: (folder / "config.json").write_text("{"),
        ConfigError,
        "JSON",
    )
