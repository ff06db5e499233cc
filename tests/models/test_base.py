"""Finding an architecture, and what its models derive from numbers and tensors."""

from __future__ import annotations

import numpy as np
import pytest
from formats.writers import random_model, tiny_config
from models.runner import views_of

from rllama.config import RopeScaling
from rllama.errors import ConfigError, UnsupportedError
from rllama.models import ALIASES, find
from rllama.models.base import f16_copy_bytes, natural_kv_dtype
from rllama.models.llama import Llama

CFG = tiny_config()
VIEWS = views_of(random_model(CFG, seed=1), "F32")


def test_find_knows_every_alias() -> None:
    assert all(find(name) for name in ALIASES)
    assert find("llama") is Llama


@pytest.mark.parametrize(("arch", "near"), [("lama", "llama"), ("qwen2x", "qwen2")])
def test_find_unknown_arch_names_itself_and_the_nearest(arch: str, near: str) -> None:
    with pytest.raises(UnsupportedError, match=f"'{arch}'.*nearest known one is '{near}'"):
        find(arch)


def test_find_arch_like_no_other_lists_the_known() -> None:
    with pytest.raises(UnsupportedError, match=r"'xyzzy'.*known: .*llama"):
        find("xyzzy")


@pytest.mark.parametrize("arch", ["gpt2", "falcon", "opt", "bloom"])
def test_find_arch_that_is_not_near_any_is_no_slip(arch: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        find(arch)
    assert "nearest" not in str(caught.value)


def test_find_lists_every_known_arch_once_and_no_class() -> None:
    with pytest.raises(UnsupportedError) as caught:
        find("xyzzy")
    known = str(caught.value).partition("known: ")[2].partition(")")[0].split(", ")
    spelled = [name.replace("-", "").replace("_", "") for name in known]
    assert len(set(spelled)) == len(spelled) > 20
    assert all(name.islower() for name in known)


@pytest.mark.parametrize(
    ("kind", "f16", "want"),
    [("F32", False, "f32"), ("F32", True, "f16"), ("F16", False, "f16"), ("Q8_0", False, "f16")],
)
def test_kv_dtype_follows_the_weights(kind: str, f16: bool, want: str) -> None:
    assert natural_kv_dtype(views_of(random_model(CFG, seed=1), kind), f16=f16) == want


def test_f16_copies_only_wide_float_matrices() -> None:
    halves = views_of({"embed": np.ones((4, 32), np.float32)}, "F16")
    assert f16_copy_bytes(VIEWS["embed"]) == VIEWS["embed"].n_bytes // 2
    assert f16_copy_bytes(VIEWS["final_norm"]) == 0
    assert f16_copy_bytes(halves["embed"]) == 0


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ({"n_rotated": 7}, "n_rotated 7"),
        ({"n_rotated": 10}, "n_rotated 10"),
        ({"windows": (4,)}, "windows must have"),
        ({"windows": (4, -1)}, "windows must have"),
        ({"rope_scaling": RopeScaling("yarn", 2.0)}, "'yarn' needs its original"),
        ({"rope_scaling": RopeScaling("linear", 0.0)}, "factor of 0.0"),
        ({"rope_scaling": RopeScaling("linear", 1e-300)}, "factor of 1e-300"),
        ({"embed_scale": float("inf")}, "embed_scale inf"),
        ({"attn_scale": float("nan")}, "attn_scale nan"),
        ({"logit_scale": 0.0}, "logit_scale 0.0"),
        ({"rope_scaling": RopeScaling("yarn", 2.0, 64), "rope_theta": 1.0}, "rope_theta above 1"),
        ({"rope_scaling": RopeScaling("dynamic", 2.0, 64), "n_rotated": 2}, "too few pairs"),
        ({"rope_scaling": RopeScaling("longrope", 2.0, 64, short_factors=(1.0,) * 4)}, "4 pairs"),
    ],
)
def test_config_numbers_that_contradict_each_other_are_refused(
    numbers: dict[str, object], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        tiny_config(**numbers)


@pytest.mark.parametrize(
    ("arch", "why"),
    [("qwen3_next", "linear-attention"), ("granitemoehybrid", "recurrent"), ("mamba2", "recurrent"),
     ("gemma3n_text", "share keys"), ("gemma4", "share keys"), ("bert", "encoder"),
     ("siglip_vision_model", "images"), ("deepseek_v3", "latent"), ("qwen2_moe", "another kind"),
     ("Qwen2_5_VL", "images")],
)  # fmt: skip
def test_find_well_known_arch_that_is_not_here_says_why(arch: str, why: str) -> None:
    with pytest.raises(UnsupportedError, match=f"'{arch}'.*not in this version.*{why}"):
        find(arch)


def test_find_unknown_arch_tells_how_to_add_one() -> None:
    with pytest.raises(UnsupportedError, match=r"docs/plugins\.md"):
        find("xyzzy")
