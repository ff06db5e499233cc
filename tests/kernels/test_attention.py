"""Paged attention against float64, and invariant to how a sequence is cut into steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernels.cases import (
    FEW,
    LEVELS,
    THREADS,
    assert_same_bits,
    assert_within,
    context,
    step_of,
)
from kernels.paged import Shape, attend, fill, make_sequence, make_store, reference
from reference import ref_ops

from rllama._kernels import core

# Around pages of 64 and spans of 512 positions; the last has neither at its end.
BORDERS = (0, 1, 62, 63, 64, 127, 128, 510, 511, 512, 513, 1023, 1024, 1189)
LONGEST = 1190
GROUPS = [(2, 1), (2, 4), (1, 8)]
DTYPES = ("f16", "f32", "q8_0")


def shapes() -> list[Shape]:
    return [
        Shape(n_kv_heads, group, head_dim, dtype)
        for head_dim in ((8, 48) if FEW else (8, 16, 48, 64, 80, 96, 112, 128, 256))
        for n_kv_heads, group in (GROUPS[1:2] if FEW else GROUPS)
        for dtype in DTYPES
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


def test_attention_in_large_cache_is_that_in_small_one(isa: str) -> None:
    """Beyond 32 MB a cache asks for large pages; here the last ones are used, backwards."""
    shape, n_pages = Shape(2, 4, 64, "f16"), 1100
    seq = make_sequence(shape, 600, seed=5)
    far = replace(seq, pages=np.arange(n_pages - 1, n_pages - 1 - len(seq.pages), -1, np.int32))
    rows = []
    for used, pages in ((seq, 2 * len(seq.pages)), (far, n_pages)):
        kv = make_store(shape, pages)
        fill(isa, kv, used, 600)
        rows.append(attend(context(isa), kv, [(used, 599, 600)]))
        kv.close()
    assert_same_bits(rows[1], rows[0], "a large cache")


# Windows within a page, of a page, over pages, of a span, over spans, beyond the sequence.
KINDS = [
    Shape(2, 2, 16, "f16", window=1),
    Shape(1, 1, 48, "f32", window=7),
    Shape(2, 1, 20, "f16", window=64),
    Shape(1, 5, 8, "f32", window=65, has_sinks=True),
    Shape(2, 4, 80, "f16", window=200, softcap=2.0),
    Shape(1, 5, 33, "q8_0", window=65, softcap=3.0, has_sinks=True),
    Shape(1, 8, 16, "f32", window=512, softcap=50.0, has_sinks=True),
    Shape(1, 3, 96, "f16", window=600, has_sinks=True),
    Shape(1, 12, 16, "f16", window=5000),
    Shape(2, 3, 112, "f32", softcap=5.0),
    Shape(1, 2, 256, "f16", softcap=30.0, window=100),
    Shape(2, 8, 64, "f16", has_sinks=True),
    Shape(2, 1, 72, "q8_0", window=600),
    Shape(2, 3, 96, "q8_0", softcap=30.0, window=100),
    Shape(1, 12, 20, "q8_0", window=1, has_sinks=True),
    Shape(1, 100, 8, "f32", softcap=1.0, has_sinks=True, window=130),
]


def kind_id(s: Shape) -> str:
    return f"{shape_id(s)}-w{s.window}-c{s.softcap:g}{'-sinks' * s.has_sinks}"


@pytest.mark.parametrize("shape", KINDS[3:6] if FEW else KINDS, ids=kind_id)
def test_attention_kinds_match_reference_at_every_border(isa: str, shape: Shape) -> None:
    """The prompt in one piece, then decoding at each border, then pieces, all the same bits."""
    seq = make_sequence(shape, LONGEST, seed=3)
    kv, ctx = make_store(shape, 2 * len(seq.pages)), context(isa)
    whole = attend(ctx, kv, [(seq, 0, LONGEST)])
    assert_within(whole[list(BORDERS)], *reference(shape, seq, BORDERS), "prompt")
    for p in BORDERS:
        assert_same_bits(attend(ctx, kv, [(seq, p, p + 1)]), whole[p : p + 1], f"decode at {p}")
    for first, last in ((0, 65), (63, 66), (190, 203), (509, 514), (600, 1113), (1186, 1190)):
        piece = attend(context(isa, 2), kv, [(seq, first, last)])
        assert_same_bits(piece, whole[first:last], f"piece {first}..{last}")


@pytest.mark.parametrize("shape", KINDS, ids=kind_id)
def test_attention_kinds_are_bit_equal_at_every_level(shape: Shape) -> None:
    seq = make_sequence(shape, 200, seed=4)
    results = [attend(context(i), make_store(shape, 8), [(seq, 0, 200)]) for i in LEVELS]
    for level, result in zip(LEVELS, results, strict=True):
        assert_same_bits(result, results[0], level)


@pytest.mark.parametrize("dtype", DTYPES)
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
@pytest.mark.parametrize("dtype", DTYPES)
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
        moved = replace(own, pages=np.argsort(own.pages).astype(np.int32) + base)
        base += len(own.pages)
        fill(isa, store, moved, first, layer=1)
        pieces.append((moved, first, last))
    assert base <= 60
    got = attend(context(isa, n_threads), store, pieces, layer=1)
    assert_same_bits(got, np.concatenate(alone), f"{n_threads} threads")


def test_attention_layers_do_not_share_memory(isa: str) -> None:
    shape = Shape(2, 2, 16, "f16")
    one, two = make_sequence(shape, 70, seed=20), make_sequence(shape, 70, seed=21)
    same_pages = replace(two, pages=one.pages)
    kv = make_store(shape, 4, n_layers=3)
    fill(isa, kv, one, 70, layer=1)
    fill(isa, kv, same_pages, 70, layer=0)
    fill(isa, kv, same_pages, 70, layer=2)
    got = attend(context(isa), kv, [(one, 69, 70)], layer=1)
    assert_within(got, *reference(shape, one, (69,)), "layer 1")


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_ignores_what_a_page_held_before(isa: str, dtype: str) -> None:
    """A page is handed on as it is; values that are not finite must not come through."""
    shape = Shape(1, 2, 16, dtype)
    seq = make_sequence(shape, 100, seed=22)
    bad = np.full_like(seq.k, np.nan)
    kv = make_store(shape, 4)
    fill(isa, kv, replace(seq, k=bad, v=bad), 100)
    fill(isa, kv, seq, 70)
    got = attend(context(isa), kv, [(seq, 70, 73)])
    assert_within(got, *reference(shape, seq, (70, 71, 72)), "reused pages")


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_keys_that_all_agree_give_the_mean(isa: str, dtype: str) -> None:
    """Equal scores, also huge ones of either sign: every position weighs the same."""
    shape = Shape(1, 1, 16, dtype)
    seq = make_sequence(shape, 600, seed=23)
    for size in (0.0, 1.0, 200.0, -200.0):
        keys = np.full_like(seq.k, 1.0)
        equal = replace(seq, q=np.full_like(seq.q, size), k=keys)
        kv = make_store(shape, 20)
        got = attend(context(isa), kv, [(equal, 0, 600)])
        mean = np.cumsum(ref_ops.store(seq.v, dtype), axis=0) / np.arange(1, 601)[:, None]
        assert np.abs(got - mean).max() < 2e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_one_far_larger_score_picks_its_value(isa: str, dtype: str) -> None:
    """At every distance: in the same page, in another page, in another span."""
    shape = Shape(1, 1, 16, dtype)
    seq = make_sequence(shape, 700, seed=24)
    for chosen in (0, 63, 64, 511, 512, 699):
        keys = np.zeros_like(seq.k)
        keys[chosen] = 100.0
        picked = replace(seq, q=np.ones_like(seq.q), k=keys)
        kv = make_store(shape, 22)
        fill(isa, kv, picked, 699)
        got = attend(context(isa), kv, [(picked, 699, 700)])
        np.testing.assert_allclose(got[0], ref_ops.store(seq.v, dtype)[chosen], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["f32", "q8_0"])
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_attention_not_a_number_shows_from_its_token_on(isa: str, where: str, dtype: str) -> None:
    """Decoded token by token: before it nothing changes; a query spoils its own token alone."""
    shape = Shape(1, 2, 16, dtype)
    seq = make_sequence(shape, 80, seed=25)
    broken = {name: getattr(seq, name).copy() for name in ("q", "k", "v")}
    broken[where][70] = np.nan
    runs = []
    for one in (seq, replace(seq, **broken)):
        kv = make_store(shape, 4)
        runs.append(
            np.concatenate([attend(context(isa), kv, [(one, p, p + 1)]) for p in range(80)])
        )
    clean, got = runs
    spoiled = np.arange(80) == 70 if where == "q" else np.arange(80) >= 70
    assert_same_bits(got[~spoiled], clean[~spoiled], where)
    assert np.isnan(got[spoiled]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("window", [0, 9, 70])
@pytest.mark.parametrize("dtype", ["f32", "q8_0"])
def test_attention_unseen_positions_add_nothing_within_a_prompt(
    isa: str, dtype: str, window: int, value: float
) -> None:
    """A value that is not finite shows in the rows that see it, and in no other of its tile."""
    shape = Shape(1, 2, 16, dtype, window=window)
    seq = make_sequence(shape, 150, seed=26)
    broken = {name: getattr(seq, name).copy() for name in ("k", "v")}
    for name in broken:
        broken[name][70] = value
    clean, *spoiled = (
        attend(context(isa), make_store(shape, 6), [(one, 0, 150)])
        for one in (seq, *(replace(seq, **{name: broken[name]}) for name in broken))
    )
    seen = np.array([70 in range(shape.first_seen(p), p + 1) for p in range(150)])
    for got in spoiled:
        assert_same_bits(got[~seen], clean[~seen], "rows that do not see it")
    assert not np.isfinite(spoiled[1][seen]).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e9], ids=["nan", "inf", "large"])
def test_attention_q8_0_number_out_of_range_spoils_its_block_alone(isa: str, value: float) -> None:
    """127 * 65504 is the largest number that a scale in f16 reaches."""
    shape = Shape(1, 2, 70, "q8_0")
    seq = make_sequence(shape, 80, seed=28)
    broken = seq.v.copy()
    broken[70, 40] = value
    clean, got = (
        attend(context(isa), make_store(shape, 4), [(s, 0, 80)])
        for s in (seq, replace(seq, v=broken))
    )
    spoiled = np.zeros((80, 2, 70), dtype=bool)
    spoiled[70:, :, 32:64] = True
    spoiled = spoiled.reshape(80, 140)
    assert not np.isfinite(got[spoiled]).any()
    np.testing.assert_array_equal(got[~spoiled], clean[~spoiled])


def test_attention_sink_far_above_takes_all_the_weight(isa: str) -> None:
    shape = Shape(1, 2, 16, "f32")
    seq = make_sequence(shape, 20, seed=27)
    sinks = np.array([[-1000.0, 1000.0]], dtype=np.float32)
    placed = core.Weight(sinks.view(np.uint8).reshape(-1), 0, 1, 2)
    step = step_of(range(20), page_table=np.zeros((1, 1), dtype=np.int32))
    out = np.full_like(seq.q, np.nan)
    spec = core.AttendSpec(0, shape.scale, 0.0, 0, placed)
    bufs = (core.Buf(a) for a in (seq.q, seq.k, seq.v))
    context(isa).attend(*bufs, make_store(shape, 1), spec, step, core.Buf(out))
    plain = attend(context(isa), make_store(shape, 2), [(seq, 0, 20)])
    np.testing.assert_allclose(out[:, :16], plain[:, :16], rtol=1e-6)
    assert np.abs(out[:, 16:]).max() < 1e-30
