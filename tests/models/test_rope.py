"""Inverse frequencies and attention factors of every kind of scaling, in closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from formats.writers import tiny_config

from rllama.config import ModelConfig, RopeScaling
from rllama.models.rope import rotation

CFG = tiny_config(head_dim=32)
PLAIN = rotation(CFG, 64).inv_freq


def scaled(scaling: RopeScaling, **numbers: object) -> ModelConfig:
    return tiny_config(head_dim=32, rope_scaling=scaling, **numbers)


def test_rotation_first_pair_turns_a_radian_per_position() -> None:
    assert PLAIN.shape == (16,)
    assert PLAIN[0] == 1.0
    np.testing.assert_allclose(PLAIN[-1], CFG.rope_theta ** (-30 / 32))


def test_rotation_of_a_part_of_the_head_spreads_over_that_part() -> None:
    freq = rotation(tiny_config(head_dim=32, n_rotated=8), 64).inv_freq
    np.testing.assert_allclose(freq, CFG.rope_theta ** (-np.arange(4) / 4))


def test_rotation_local_is_never_scaled() -> None:
    cfg = scaled(RopeScaling("linear", 8.0), local_rope_theta=100.0)
    np.testing.assert_allclose(rotation(cfg, 64).inv_freq, PLAIN / 8)
    local = rotation(cfg, 64, local=True)
    np.testing.assert_allclose(local.inv_freq, 100.0 ** (-np.arange(16) / 16))


def test_rotation_dynamic_is_settled_by_the_context() -> None:
    cfg = scaled(RopeScaling("dynamic", 2.0, 64))
    np.testing.assert_array_equal(rotation(cfg, 32).inv_freq, PLAIN)
    np.testing.assert_array_equal(rotation(cfg, 64).inv_freq, PLAIN)
    base = CFG.rope_theta * (2 * 128 / 64 - 1) ** (32 / 30)
    np.testing.assert_allclose(rotation(cfg, 128).inv_freq, base ** (-np.arange(16) / 16))


def test_rotation_yarn_keeps_fast_pairs_and_divides_slow_ones() -> None:
    turn = rotation(scaled(RopeScaling("yarn", 4.0, 64, beta_fast=4.0)), 256)
    assert turn.inv_freq[0] == PLAIN[0]
    np.testing.assert_allclose(turn.inv_freq[-1], PLAIN[-1] / 4)
    assert (np.diff(PLAIN / turn.inv_freq) >= -1e-12).all()
    assert turn.factor == pytest.approx(1 + 0.1 * math.log(4))


@pytest.mark.parametrize(
    ("numbers", "want"),
    [
        ({"attn_factor": 0.7}, 0.7),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"mscale": 0.5}, 1 + 0.1 * math.log(4)),
        ({"factor": 0.5}, 1.0),
    ],
)
def test_rotation_yarn_factor(numbers: dict[str, float], want: float) -> None:
    scaling = RopeScaling("yarn", **{"factor": 4.0, "original_max_seq_len": 64, **numbers})
    assert rotation(scaled(scaling), 256).factor == pytest.approx(want)


def test_rotation_yarn_of_one_width_does_not_divide_by_zero() -> None:
    turn = rotation(scaled(RopeScaling("yarn", 4.0, 2, beta_fast=1.0, beta_slow=1.0)), 256)
    assert np.isfinite(turn.inv_freq).all()


def test_rotation_llama3_keeps_divides_and_mixes_by_wavelength() -> None:
    got = rotation(scaled(RopeScaling("llama3", 8.0, 64)), 512).inv_freq
    turns = 64 * PLAIN / (2 * math.pi)
    np.testing.assert_allclose(got[turns > 4], PLAIN[turns > 4])
    np.testing.assert_allclose(got[turns < 1], PLAIN[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert ((got < PLAIN) & (got > PLAIN / 8))[between].all()


def test_rotation_longrope_changes_lists_beyond_the_original_context() -> None:
    short, long = (1.0,) * 16, (2.0,) * 16
    cfg = scaled(RopeScaling("longrope", 4.0, 64, short_factors=short, long_factors=long))
    np.testing.assert_allclose(rotation(cfg, 64).inv_freq, PLAIN)
    beyond = rotation(cfg, 65)
    np.testing.assert_allclose(beyond.inv_freq, PLAIN / 2)
    assert beyond.factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(64)))
