"""The forward pass against the float64 reference, for every weight type and ISA level."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from formats.writers import random_model, tiny_config
from models.runner import float64_of, make, relative_error, tokens, views_of
from reference.ref_model import forward as ref_forward

from rllama.batch import Batch

# Largest |got - want| over the largest |want|. Float types: the rounding of f32 sums, and of a
# cache in f16 where that is what runs; block types add the int8 activations, whose step is 1/127
# of a block's largest value.
BOUND = {"F32": 3e-6, "F16": 2e-3, "BF16": 1.5e-2, "Q8_0": 3e-2, "Q4_0": 3e-2, "Q8_F32": 3e-2}


@pytest.mark.parametrize("kind", list(BOUND))
def test_llama_logits_match_reference(isa: str, kind: str) -> None:
    cfg = tiny_config()
    views = views_of(random_model(cfg, seed=3), kind)
    ids = tokens(cfg, 40)
    got = make(cfg, views, isa).run([(ids, 0, [3])])
    assert got.shape == (40, cfg.vocab_size)
    assert relative_error(got, ref_forward(cfg, float64_of(views), ids)) < BOUND[kind]


@pytest.mark.parametrize("style", ["interleaved", "half"])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "head"])
def test_llama_variants_match_reference(
    style: str, n_kv_heads: int, theta: float, tied: bool
) -> None:
    cfg = tiny_config(
        rope_style=style, n_kv_heads=n_kv_heads, rope_theta=theta, tied_head=tied, head_dim=12
    )
    views = views_of(random_model(cfg, seed=4), "F32")
    ids = tokens(cfg, 33)
    got = make(cfg, views).run([(ids, 0, [0])])
    assert relative_error(got, ref_forward(cfg, float64_of(views), ids)) < BOUND["F32"]


@pytest.mark.parametrize(
    "attention",
    [
        {"windows": (5, 0)},
        {"windows": (16, 16)},
        {"attn_softcap": 1.5},
        {"attn_scale": 0.1, "windows": (0, 3), "attn_softcap": 0.5},
    ],
    ids=["mixed", "window", "softcap", "all"],
)
def test_llama_attention_of_the_config_matches_reference(attention: dict[str, object]) -> None:
    cfg, plain = tiny_config(**attention), tiny_config()
    views = views_of(random_model(cfg, seed=8), "F32")
    ids = tokens(cfg, 40)
    got = make(cfg, views).run([(ids, 0, [0])])
    assert relative_error(got, ref_forward(cfg, float64_of(views), ids)) < BOUND["F32"]
    assert relative_error(got, ref_forward(plain, float64_of(views), ids)) > 1e-2


def test_llama_two_sequences_in_pieces_over_scattered_pages_match_reference() -> None:
    cfg = tiny_config(max_seq_len=256)
    views = views_of(random_model(cfg, seed=6), "F32")
    weights = float64_of(views)
    first, second = tokens(cfg, 150, seed=1), tokens(cfg, 20, seed=2)
    runner, pages = make(cfg, views), ([7, 2, 11], [5])
    got: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for begin, end in pairwise([0, 1, 60, 70, 150]):
        a = slice(begin, end)
        b = slice(min(begin, 20), min(end, 20))
        plan = [(ids[part], part.start, table)
                for ids, part, table in ((first, a, pages[0]), (second, b, pages[1]))
                if ids[part]]  # fmt: skip
        out = runner.run(plan)
        got[0].append(out[: end - begin])
        got[1].append(out[end - begin :])
    for rows, ids in zip(got, (first, second), strict=True):
        want = ref_forward(cfg, weights, ids)
        assert relative_error(np.concatenate(rows), want) < BOUND["F32"]


@pytest.mark.parametrize("kind", ["F32", "BF16", "F16"])
def test_llama_f16_option_holds_float_weights_as_f16(kind: str) -> None:
    cfg = tiny_config()
    views = views_of(random_model(cfg, seed=3), kind)
    ids = tokens(cfg, 40)
    runner = make(cfg, views, f16=True)
    assert runner.model.kv_dtype == "f16"
    assert runner.model.layers[0].wq.format_name == "F16"
    assert runner.model.layers[0].attn_norm.format_name == "F32"
    halved = views_of({k: v.astype(np.float32) for k, v in float64_of(views).items()}, "F16")
    want = ref_forward(cfg, float64_of(halved), ids)
    assert relative_error(runner.run([(ids, 0, [0])]), want) < BOUND["F16"]


def test_llama_only_wanted_rows_get_logits() -> None:
    cfg = tiny_config()
    views = views_of(random_model(cfg, seed=3), "F32")
    runner, ids = make(cfg, views), tokens(cfg, 9)
    everything = runner.run([(ids, 0, [0])])
    batch = Batch(*(np.array(a, dtype=np.int32) for a in (ids, range(9), [0, 9], [[[0]]], [3, 8])))
    some = np.array(runner.model.forward(batch, runner.kv))
    np.testing.assert_array_equal(some, everything[[3, 8]])
