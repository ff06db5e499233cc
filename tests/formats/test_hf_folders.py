"""What is said about Hugging Face folders that hold something else than a model of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_writers import hf_numbers, write_family_hf
from writers import random_model, safetensors_bytes, tiny_config

from rllama.errors import ConfigError, UnsupportedError
from rllama.loader import open_model

CFG = tiny_config()
MODEL = random_model(CFG, 7)
TIED = {name: x for name, x in MODEL.items() if name != "lm_head"}


@pytest.mark.parametrize(
    ("model_type", "tensor", "text"),
    [("mamba", "backbone.embeddings.weight", "recurrent"), ("gpt2", "wte.weight", "'gpt2' is not"),
     ("clip", "text_model.embeddings.token_embedding.weight", "images")],
)  # fmt: skip
def test_folder_of_another_architecture_is_named_before_its_tensors(
    model_type: str, tensor: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    weights = safetensors_bytes({tensor: ("F32", (2,), bytes(8))})
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(UnsupportedError, match=text):
        open_model(tmp_path)


def _seeing(folder: Path, model: dict[str, np.ndarray], *ties: bool | None) -> Path:
    """A model of two parts with tie_word_embeddings outside and inside, None for none."""
    outer, inner = ({} if tie is None else {"tie_word_embeddings": tie} for tie in ties)
    text = {**hf_numbers(CFG), "model_type": "mistral", "sliding_window": None}
    text.pop("architectures", None)
    text.pop("tie_word_embeddings", None)
    numbers: dict[str, Any] = {"model_type": "mistral3", **outer, "text_config": {**text, **inner}}
    return write_family_hf(folder, numbers, model)


@pytest.mark.parametrize("ties", [(True, False), (True, None), (None, False), (False, True)])
def test_two_part_folder_without_a_head_is_tied_where_either_part_says_so(
    ties: tuple[bool | None, bool | None], tmp_path: Path
) -> None:
    checkpoint = open_model(_seeing(tmp_path / "hf", TIED, *ties))
    assert checkpoint.config is not None
    assert checkpoint.config.tied_head
    checkpoint.close()


@pytest.mark.parametrize("ties", [(True, False), (None, False), (False, True), (False, False)])
def test_two_part_folder_with_a_head_uses_it_where_either_part_says_so(
    ties: tuple[bool | None, bool | None], tmp_path: Path
) -> None:
    checkpoint = open_model(_seeing(tmp_path / "hf", MODEL, *ties))
    assert checkpoint.config is not None
    assert not checkpoint.config.tied_head
    checkpoint.close()


def test_two_part_folder_that_is_nowhere_tied_needs_its_head(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is false, but the tensor lm_head\.weight is missing"):
        open_model(_seeing(tmp_path / "hf", TIED, False, False))
