"""The corpus of bad model files: every row of the catalogue, each with its variants and verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hostile_config
import hostile_experts
import hostile_gguf
import hostile_gguf_model
import hostile_gguf_split
import hostile_gguf_types
import hostile_hf
import hostile_hf_torch
import hostile_llama2c
import hostile_meta
import hostile_packed
import hostile_pickle
import hostile_safetensors
import hostile_torch
from formats.llama2rs_writer import llama2rs_bytes
from formats.writers import tiny_config
from hostile_case import Case

__all__ = ["Case", "Seed", "all_cases", "seeds"]


def all_cases() -> list[Case]:
    """Every case, in the order of the catalogue."""
    cases: list[Case] = []
    for module in (
        hostile_gguf,
        hostile_gguf_model,
        hostile_gguf_split,
        hostile_gguf_types,
        hostile_experts,
        hostile_safetensors,
        hostile_hf,
        hostile_hf_torch,
        hostile_llama2c,
        hostile_config,
        hostile_packed,
        hostile_torch,
        hostile_pickle,
        hostile_meta,
    ):
        cases += module.cases()
    ids = [case.id for case in cases]
    assert len(set(ids)) == len(ids), "case ids must be unique"
    return cases


@dataclass(frozen=True)
class Seed:
    """A correct file to be cut and mutated.

    Notes:   `place` writes bytes where a reader finds them and returns the path to open;
             `lengths` are the bytes worth mutating: header and its neighbourhood
    """

    name: str
    data: bytes
    place: Callable[[Path, bytes], Path]
    header_bytes: int


def seeds() -> Iterator[Seed]:
    """One correct file per format and version."""
    yield Seed("gguf", hostile_gguf.GOOD, _plain, len(hostile_gguf.base().header()))
    good = hostile_safetensors.GOOD
    yield Seed(
        "safetensors",
        good,
        hostile_safetensors.place_weights,
        8 + int.from_bytes(good[:8], "little"),
    )
    packed = hostile_packed.GOOD
    yield Seed(
        "gptq", packed, hostile_packed.place_packed, 8 + int.from_bytes(packed[:8], "little")
    )
    yield Seed("config", hostile_config.GOOD, hostile_config.place_config, 10**6)
    yield Seed("index", hostile_hf.GOOD_INDEX, hostile_hf.place_index, 10**6)
    for version in (0, 1, 2):
        yield Seed(f"llama2c-v{version}", hostile_llama2c.good(version), _plain, 64)
    small = tiny_config(n_layers=1, ffn_dim=32, vocab_size=40, rope_style="half")
    yield Seed("llama2.rs", llama2rs_bytes(small)[0], _plain, 64)
    yield Seed("mixture", hostile_experts.good(), _plain, 4096)
    yield Seed(
        "tokenizer.bin", hostile_llama2c.GOOD_TOKENIZER, hostile_llama2c.place_tokenizer, 400
    )

    yield Seed("torch", hostile_torch.GOOD, hostile_torch.place, 10**6)
    yield Seed("torch-pickle", hostile_torch.GOOD_PICKLE, hostile_pickle.place_pickle, 10**6)
    yield Seed("params", hostile_meta.PARAMS, hostile_meta.place_params, 10**6)


def _plain(folder: Path, data: bytes) -> Path:
    path = folder / "model"
    path.write_bytes(data)
    return path
