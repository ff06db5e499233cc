"""What a config.json leaves unsaid is what transformers assumes."""

from __future__ import annotations

from typing import Any

import pytest

from rllama.formats.hf_families import FAMILIES

# Keys that transformers turns into others when it makes a config.
TURNED = {"sliding_window_pattern", "rope_theta", "rope_local_base_freq", "no_rope_layer_interval",
          "partial_rotary_factor"}  # fmt: skip
# Nothing is assumed where transformers always has a window, and where it never looks for one.
OURS = {"use_sliding_window", "sliding_window"}


def transformers_config(model_type: str) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoConfig.for_model(model_type)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_assumed_numbers_are_those_of_transformers(model_type: str) -> None:
    theirs = transformers_config(model_type)
    for key, value in FAMILIES[model_type].assumed.items():
        if key not in TURNED | OURS:
            assert getattr(theirs, key) == value, key


@pytest.mark.parametrize("model_type", FAMILIES)
def test_assumed_rotation_is_that_of_transformers(model_type: str) -> None:
    assumed = FAMILIES[model_type].assumed
    ropes = transformers_config(model_type).rope_parameters
    theta = assumed.get("rope_theta", 10000.0)
    assert ropes.get("full_attention", ropes)["rope_theta"] == theta
    if "rope_local_base_freq" in assumed:
        assert ropes["sliding_attention"]["rope_theta"] == assumed["rope_local_base_freq"]
    else:
        assert "sliding_attention" not in ropes


@pytest.mark.parametrize("model_type", FAMILIES)
def test_assumed_windows_are_those_of_transformers(model_type: str) -> None:
    theirs, assumed = transformers_config(model_type), FAMILIES[model_type].assumed
    has_windows = assumed.get("use_sliding_window", True) and "sliding_window" in assumed
    assert (getattr(theirs, "sliding_window", None) is not None) is has_windows
    every = assumed.get("sliding_window_pattern", 0)
    kinds = getattr(theirs, "layer_types", None)
    if has_windows and kinds is not None:
        want = [every == 0 or (i + 1) % every != 0 for i in range(len(kinds))]
        assert [kind == "sliding_attention" for kind in kinds] == want


def test_assumed_layers_without_rotation_are_those_of_transformers() -> None:
    theirs = transformers_config("smollm3")
    every = FAMILIES["smollm3"].assumed["no_rope_layer_interval"]
    turns = [int((i + 1) % every != 0) for i in range(theirs.num_hidden_layers)]
    assert theirs.no_rope_layers == turns
