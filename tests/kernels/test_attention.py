"""Paged attention against float64, and invariant to how a sequence is cut into steps."""

from __future__ import annotations

import numpy as np
import pytest
from kernels.cases import FEW, THREADS, assert_same_bits, assert_within, context
from kernels.paged import Sequence, Shape, attend, fill, make_sequence, make_store, reference

# Around pages of 64 and spans of 512 positions; the last has neither at its end.
BORDERS = (0, 1, 62, 63, 64, 127, 128, 510, 511, 512, 513, 1023, 1024, 1189)
LONGEST = 1190
GROUPS = [(2, 1), (2, 4), (1, 8)]


def shapes() -> list[Shape]:
    return [
        Shape(n_kv_heads, group, head_dim, dtype)
        for head_dim in ((8, 48) if FEW else (8, 16, 48, 64, 80, 128))
        for n_kv_heads, group in (GROUPS[1:2] if FEW else GROUPS)
        for dtype in ("f16", "f32")
    ]


def shape_id(s: Shape) -> str:
    return f"{s.dtype}-d{s.head_dim}-G{s.n_kv_heads}x{s.group}"


@pytest.mark.parametrize("shape", shapes(), ids=shape_id)
def test_attention_matches_reference_at_every_border(isa: str, shape: Shape) -> None:
    """Decoding at each border; then pieces of prompts that run over it, bit for bit the same."""
    seq = make_sequence(shape, LONGEST, seed=1)
    kv, ctx = make_store(shape, 2 * len(seq.pages)), context(isa)
    fill(isa, kv, seq, LONGEST)
    decoded = np.concatenate([attend(ctx, kv, [(seq, p, p + 1)]) for p in BORDERS])
    assert_within(decoded, *reference(shape, seq, BORDERS), "decode")
    for first, last in ((0, 2), (60, 66), (100, 140), (509, 514), (1020, 1025), (1186, 1190)):
        piece = attend(ctx, kv, [(seq, first, last)])
        inside = [(i, p - first) for i, p in enumerate(BORDERS) if first <= p < last]
        assert inside
        for i, row in inside:
            what = f"position {BORDERS[i]} in {first}..{last}"
            assert_same_bits(piece[row : row + 1], decoded[i : i + 1], what)


@pytest.mark.parametrize("dtype", ["f16", "f32"])
@pytest.mark.parametrize("chunk", [5, 200] if FEW else [1, 4, 5, 64, 200, 640])
def test_attention_chunks_are_bit_equal_to_one_prompt(isa: str, dtype: str, chunk: int) -> None:
    shape = Shape(1, 3, 20, dtype)
    seq = make_sequence(shape, 640, seed=2)
    whole = attend(context(isa), make_store(shape, 20), [(seq, 0, 640)])
    assert_within(
        whole[[0, 100, 639]], *reference(shape, seq, (0, 100, 639)), "whole prompt"
    )  # fmt: skip
    kv = make_store(shape, 20)
    pieces = [
        attend(context(isa), kv, [(seq, first, min(640, first + chunk))])
        for first in range(0, 640, chunk)
    ]
    assert_same_bits(np.concatenate(pieces), whole, f"chunks of {chunk}")


@pytest.mark.parametrize("n_threads", THREADS[-1:] if FEW else THREADS)
@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_attention_mixed_batch_is_bit_equal_to_alone(isa: str, dtype: str, n_threads: int) -> None:
    """Decodes, a short piece, a long piece and a new prompt share a step and a store."""
    shape = Shape(2, 4, 16, dtype)
    spans = [(1100, 1101), (500, 570), (0, 130), (640, 643), (30, 31)]
    store = make_store(shape, 60, n_layers=2)
    pieces, alone, base = [], [], 0
    for i, (first, last) in enumerate(spans):
        own = make_sequence(shape, last, seed=10 + i)
        single = make_store(shape, 2 * len(own.pages), n_layers=2)
        fill(isa, single, own, first, layer=1)
        alone.append(attend(context(isa), single, [(own, first, last)], layer=1))
        moved = Sequence(own.q, own.k, own.v, np.argsort(own.pages).astype(np.int32) + base)
        base += len(own.pages)
        fill(isa, store, moved, first, layer=1)
        pieces.append((moved, first, last))
    assert base <= 60
    got = attend(context(isa, n_threads), store, pieces, layer=1)
    assert_same_bits(got, np.concatenate(alone), f"{n_threads} threads")


def test_attention_layers_do_not_share_memory(isa: str) -> None:
    shape = Shape(2, 2, 16, "f16")
    one, two = make_sequence(shape, 70, seed=20), make_sequence(shape, 70, seed=21)
    same_pages = Sequence(two.q, two.k, two.v, one.pages)
    kv = make_store(shape, 4, n_layers=3)
    fill(isa, kv, one, 70, layer=1)
    fill(isa, kv, same_pages, 70, layer=0)
    fill(isa, kv, same_pages, 70, layer=2)
    got = attend(context(isa), kv, [(one, 69, 70)], layer=1)
    assert_within(got, *reference(shape, one, (69,)), "layer 1")


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_attention_ignores_what_a_page_held_before(isa: str, dtype: str) -> None:
    """A page is handed on as it is; values that are not finite must not come through."""
    shape = Shape(1, 2, 16, dtype)
    seq = make_sequence(shape, 100, seed=22)
    bad = np.full_like(seq.k, np.nan)
    kv = make_store(shape, 4)
    fill(isa, kv, Sequence(seq.q, bad, bad, seq.pages), 100)
    fill(isa, kv, seq, 70)
    got = attend(context(isa), kv, [(seq, 70, 73)])
    assert_within(got, *reference(shape, seq, (70, 71, 72)), "reused pages")


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_attention_keys_that_all_agree_give_the_mean(isa: str, dtype: str) -> None:
    """Equal scores, also huge ones of either sign: every position weighs the same."""
    shape = Shape(1, 1, 16, dtype)
    seq = make_sequence(shape, 600, seed=23)
    for size in (0.0, 1.0, 200.0, -200.0):
        keys = np.full_like(seq.k, 1.0)
        equal = Sequence(np.full_like(seq.q, size), keys, seq.v, seq.pages)
        kv = make_store(shape, 20)
        got = attend(context(isa), kv, [(equal, 0, 600)])
        mean = np.cumsum(ref_values(seq, dtype), axis=0) / np.arange(1, 601)[:, None]
        assert np.abs(got - mean).max() < 2e-6


def ref_values(seq: Sequence, dtype: str) -> np.ndarray:
    return seq.v.astype(np.float16 if dtype == "f16" else np.float32).astype(np.float64)


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_attention_one_far_larger_score_picks_its_value(isa: str, dtype: str) -> None:
    """At every distance: in the same page, in another page, in another span."""
    shape = Shape(1, 1, 16, dtype)
    seq = make_sequence(shape, 700, seed=24)
    for chosen in (0, 63, 64, 511, 512, 699):
        keys = np.zeros_like(seq.k)
        keys[chosen] = 100.0
        picked = Sequence(np.ones_like(seq.q), keys, seq.v, seq.pages)
        kv = make_store(shape, 22)
        fill(isa, kv, picked, 699)
        got = attend(context(isa), kv, [(picked, 699, 700)])
        np.testing.assert_allclose(got[0], ref_values(seq, dtype)[chosen], rtol=1e-6)


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_attention_not_a_number_shows_from_its_token_on(isa: str, where: str) -> None:
    """Decoded token by token: before it nothing changes; a query spoils its own token alone."""
    shape = Shape(1, 2, 16, "f32")
    seq = make_sequence(shape, 80, seed=25)
    broken = {name: getattr(seq, name).copy() for name in ("q", "k", "v")}
    broken[where][70] = np.nan
    runs = []
    for one in (seq, Sequence(**broken, pages=seq.pages)):
        kv = make_store(shape, 4)
        runs.append(
            np.concatenate([attend(context(isa), kv, [(one, p, p + 1)]) for p in range(80)])
        )
    clean, got = runs
    spoiled = np.arange(80) == 70 if where == "q" else np.arange(80) >= 70
    assert_same_bits(got[~spoiled], clean[~spoiled], where)
    assert np.isnan(got[spoiled]).all()
