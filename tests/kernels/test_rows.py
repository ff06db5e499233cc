"""The ops that go row by row: norm, gated unit, rotation, embedding, gather."""

from __future__ import annotations

import numpy as np
import pytest
from kernels.cases import (
    BLOCK_BYTES,
    BLOCK_LEN,
    BLOCKS,
    FLOATS,
    FORMATS,
    THREADS,
    Case,
    assert_same_bits,
    assert_within,
    block_weight,
    context,
    fit,
    random_weight,
    random_x,
    step_of,
)
from reference import ref_ops
from reference.ref_ops import F32, U

from rllama._kernels import core
from rllama.quant import dequantize

WIDTHS = [1, 2, 3, 5, 8, 15, 16, 17, 31, 63, 64, 65, 100, 129, 288, 1000]
TOKENS = [1, 2, 16, 17, 33]  # around the 16 rows that a thread takes at once


def norm_weight(values: F32) -> core.Weight:
    return core.Weight(values.view(np.uint8).reshape(-1), 0, 1, values.size)


def rms_norm(isa: str, x: F32, weight: F32, eps: float, n_threads: int = 1) -> F32:
    out = np.full_like(x, np.nan)
    context(isa, n_threads).rms_norm(core.Buf(x), norm_weight(weight), eps, core.Buf(out))
    return out


@pytest.mark.parametrize("width", WIDTHS)
def test_norm_matches_reference(isa: str, width: int) -> None:
    """D squares and D sums, halved by the root, and five more roundings."""
    weight = random_x(1, width, seed=1)
    for n_tokens in TOKENS:
        x = random_x(n_tokens, width, seed=2)
        want = ref_ops.rms_norm(x, weight, 1e-5)
        got = rms_norm(isa, x, weight, 1e-5)
        assert_within(got, want, (width / 2 + 6) * U * np.abs(want), f"T{n_tokens}")
        for n_threads in THREADS:
            assert_same_bits(rms_norm(isa, x, weight, 1e-5, n_threads), got, f"{n_threads}")


def test_norm_row_alone_is_bit_equal_and_in_place_works(isa: str) -> None:
    weight, x = random_x(1, 129, seed=3), random_x(33, 129, seed=4)
    want = rms_norm(isa, x, weight, 1e-6)
    alone = [rms_norm(isa, x[t : t + 1], weight, 1e-6) for t in range(33)]
    assert_same_bits(np.concatenate(alone), want, "alone")
    buf = core.Buf(x.copy())
    context(isa).rms_norm(buf, norm_weight(weight), 1e-6, buf)
    assert_same_bits(buf.array, want, "in place")


@pytest.mark.parametrize("head_dim", [1, 3, 17, 64, 100])
def test_norm_of_heads_is_that_of_rows(isa: str, head_dim: int) -> None:
    """A weight of one head's width norms every head as if it were a row of its own."""
    weight = random_x(1, head_dim, seed=20)
    for n_tokens, n_heads in ((1, 1), (1, 40), (17, 3)):
        x = random_x(n_tokens, n_heads * head_dim, seed=21)
        want = rms_norm(isa, x.reshape(-1, head_dim), weight, 1e-5).reshape(x.shape)
        for n_threads in THREADS:
            got = rms_norm(isa, x, weight, 1e-5, n_threads)
            assert_same_bits(got, want, f"T{n_tokens} H{n_heads}")


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-30, 1e-3, 1e18])
def test_norm_of_tiny_and_large_rows(isa: str, size: float) -> None:
    """Zero stays zero. Squares below the smallest f32 vanish, as beside eps they should."""
    x = (random_x(3, 40, seed=5).astype(np.float64) * size).astype(np.float32)
    weight = np.ones((1, 40), dtype=np.float32)
    want = ref_ops.rms_norm(x, weight, 1e-5)
    assert_within(rms_norm(isa, x, weight, 1e-5), want, 26 * U * np.abs(want) + 2e-45, str(size))


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["nan", "inf"])
def test_norm_not_finite_shows_in_its_row_alone(isa: str, value: float) -> None:
    weight, x = random_x(1, 50, seed=6), random_x(5, 50, seed=7)
    want, broken = rms_norm(isa, x, weight, 1e-5), x.copy()
    broken[2, 49] = value
    got = rms_norm(isa, broken, weight, 1e-5)
    assert np.isnan(got[2, 49])
    others = [0, 1, 3, 4]
    assert_same_bits(got[others], want[others], "others")


@pytest.mark.parametrize("size", [*range(1, 36), 255, 16383, 16384, 16385, 40000])
def test_glu_matches_reference(isa: str, size: int) -> None:
    """e^-x within 4 U, one sum, one quotient, one product, of which the sum shares its error."""
    rng = np.random.default_rng(size)
    gate = rng.uniform(-30, 30, (1, size)).astype(np.float32)
    up = rng.standard_normal((1, size)).astype(np.float32)
    want = ref_ops.glu(gate, up)
    for n_threads in THREADS:
        out = core.Buf(gate.copy())
        context(isa, n_threads).glu(out, core.Buf(up))
        assert_within(out.array, want, 8 * U * np.abs(want) + 2.0**-149, f"{n_threads} threads")


def test_glu_at_the_edges(isa: str) -> None:
    """Below -88 the exponential stands still, which is off by at most |gate| / e^88."""
    values = [0.0, -0.0, -86.9, -88.5, -104, -1e4, -1e30, 87, 89, 1e4, 3e38, 1e-40, -1e-45]
    gate = np.array([values], dtype=np.float32)
    out = core.Buf(gate.copy())
    context(isa).glu(out, core.Buf(np.ones_like(gate)))
    want = ref_ops.glu(gate, np.ones_like(gate))
    bound = 8 * U * np.abs(want) + np.abs(gate) * 6.1e-39 * (gate < -86) + 2.0**-149
    assert_within(out.array, want, bound, "edges")


def test_glu_not_a_number_stays_in_its_place(isa: str) -> None:
    gate, up = random_x(2, 20, seed=8).copy(), random_x(2, 20, seed=9).copy()
    gate[0, 3] = up[1, 19] = np.nan
    out = core.Buf(gate.copy())
    context(isa).glu(out, core.Buf(up))
    assert np.argwhere(np.isnan(out.array)).tolist() == [[0, 3], [1, 19]]


def rope(
    isa: str, x: F32, positions: list[int], inv_freq: np.ndarray, style: str, n_threads: int = 1
) -> F32:
    """Rotate as the queries; the keys are one head of their own."""
    q, k = core.Buf(x.copy()), core.Buf(np.zeros((len(x), 2 * len(inv_freq)), dtype=np.float32))
    table = core.RopeTable(inv_freq, max(positions) + 1)
    context(isa, n_threads).rope(q, k, step_of(positions), table, style)
    assert not k.array.any()
    return np.asarray(q.array)


@pytest.mark.parametrize("style", ["interleaved", "half"])
@pytest.mark.parametrize("half", [1, 2, 4, 5, 24, 32, 64])
def test_rope_matches_reference(isa: str, half: int, style: str) -> None:
    """Two products of a cosine and a sine that are rounded too, and one sum: 3 roundings each."""
    inv_freq = 10000.0 ** (-np.arange(half) / half)
    for n_heads, first, n_tokens in ((1, 0, 1), (3, 5, 17), (8, 2040, 33)):
        x = random_x(n_tokens, n_heads * 2 * half, seed=10)
        positions = list(range(first, first + n_tokens))
        want, norm = ref_ops.rope(
            x.reshape(n_tokens, n_heads, -1), np.array(positions), inv_freq, style
        )
        for n_threads in THREADS:
            got = rope(isa, x, positions, inv_freq, style, n_threads)
            assert_within(got, want.reshape(x.shape), 4 * U * norm.reshape(x.shape), style)


def test_rope_far_positions_are_exact(isa: str) -> None:
    """Angles are made in float64: a hundred thousand turns lose nothing."""
    x = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (3, 1))
    got = rope(isa, x, [99_997, 99_998, 99_999], np.array([1.0]), "half")
    angle = np.arange(99_997, 100_000, dtype=np.float64)
    np.testing.assert_allclose(got, np.stack([np.cos(angle), np.sin(angle)], 1), atol=6e-8)


def test_rope_factor_multiplies_what_is_rotated(isa: str) -> None:
    inv_freq, x = 10000.0 ** (-np.arange(8) / 8), random_x(5, 16, seed=16)
    positions = [7, 8, 9, 10, 11]
    q = core.Buf(x.copy())
    table = core.RopeTable(inv_freq, 12, 1.25)
    context(isa).rope(q, core.Buf.zeros(5, 16), step_of(positions), table, "half")
    want, norm = ref_ops.rope(x[:, None, :], np.array(positions), inv_freq, "half")
    assert_within(q.array, 1.25 * want[:, 0], 5 * U * norm[:, 0], "factor")


def test_grow_multiplies_by_the_logarithm_of_whole_lengths(isa: str) -> None:
    x, positions = random_x(40, 19, seed=8), list(range(20, 60))
    got = core.Buf(x.copy())
    context(isa, 2).grow(got, step_of(positions), 0.1, 25)
    factors = 1 + 0.1 * np.log(1 + np.array(positions) // 25)
    assert_within(got.array, x * factors[:, None], 2 * U * np.abs(x * factors[:, None]), "grow")
    np.testing.assert_array_equal(got.array[:5], x[:5])


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_rope_of_narrow_pairs_turns_the_beginning_of_each_head(isa: str, style: str) -> None:
    x = np.random.default_rng(3).standard_normal((4, 2 * 16)).astype(np.float32)
    inv_freq, positions = np.array([1.0, 0.5, 0.25]), [5, 6, 7, 8]
    q = core.Buf(x.copy())
    table = core.RopeTable(inv_freq, 64, 1.0, 16)
    context(isa).rope(q, core.Buf.zeros(4, 16), step_of(positions), table, style)
    heads, got = x.reshape(4, 2, 16), q.array.reshape(4, 2, 16)
    want, norm = ref_ops.rope(heads[..., :6], np.array(positions), inv_freq, style)
    assert (np.abs(got[..., :6] - want) <= 4 * ref_ops.U * norm).all()
    np.testing.assert_array_equal(got[..., 6:], heads[..., 6:])


def test_rope_table_grows_with_the_positions(isa: str) -> None:
    table, ctx = core.RopeTable(np.array([0.5, 0.25]), 100), context(isa)
    x = random_x(1, 4, seed=11)
    for position in (50, 3, 99):
        q, k = core.Buf(x.copy()), core.Buf(x.copy())
        ctx.rope(q, k, step_of([position]), table, "half")
        fresh = rope(isa, x, [position], np.array([0.5, 0.25]), "half")
        assert_same_bits(q.array, fresh, f"q at {position}")
        assert_same_bits(k.array, fresh, f"k at {position}")


def embed(isa: str, case: Case, ids: list[int], n_threads: int = 1) -> F32:
    out = np.full((len(ids), case.n_cols), np.nan, dtype=np.float32)
    step = step_of(list(range(len(ids))), token_ids=ids)
    context(isa, n_threads).embed(step, case.weight, core.Buf(out))
    return out


@pytest.mark.parametrize("fmt", FORMATS)
def test_embed_is_exact(isa: str, fmt: str) -> None:
    """A value is one scale times one whole number, rounded to f32 once."""
    ids = [9, 0, 3, 3, 9, 1, *range(10)] * 3
    for n_cols in (1, 7, 8, 9, 31, 172) if fmt in FLOATS else (fit(fmt, 32), fit(fmt, 288)):
        case = random_weight(fmt, 10, n_cols, seed=12)
        want = case.values.astype(np.float32)[ids]
        for n_threads in THREADS:
            assert_same_bits(embed(isa, case, ids, n_threads), want, f"K{n_cols}")


@pytest.mark.parametrize("fmt", FORMATS)
def test_embed_of_any_bytes_is_what_the_codec_says(isa: str, fmt: str) -> None:
    """2,000 blocks: every code of every book, scales of every size, some of them not finite. The
    codecs say the same as ggml's to the bit (tests/quant)."""
    n_cols = 20 * max(32, BLOCK_LEN[fmt])
    rng = np.random.default_rng(16)
    n_bytes = 100 * n_cols // BLOCK_LEN[fmt] * BLOCK_BYTES[fmt]
    case = Case(fmt, rng.integers(0, 256, n_bytes, dtype=np.uint8), 100, n_cols)
    got, want = embed(isa, case, list(range(100))), dequantize(fmt, case.raw, (100, n_cols))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    usual = ~np.isnan(want)
    assert usual.any()
    assert_same_bits(got[usual], want[usual], fmt)


@pytest.mark.parametrize("fmt", BLOCKS)
def test_embed_scales_at_the_edge(isa: str, fmt: str) -> None:
    scales = np.array([0.0, 6e-8, -6e-8, 65504.0, -65504.0, 6.1e-5, -1.0, 0.5])
    rng = np.random.default_rng(13)
    whole = rng.integers(0, 256, (8, 16 if fmt == "Q4_0" else 32), dtype=np.uint8)
    case = block_weight(fmt, scales, whole, 8, 32)
    got = embed(isa, case, list(range(8)))
    np.testing.assert_array_equal(got, case.values.astype(np.float32))


def test_embed_f16_every_bit_pattern(isa: str) -> None:
    raw = np.arange(65536, dtype="<u2").view(np.uint8)
    got = embed(isa, Case("F16", raw, 4, 16384), [0, 1, 2, 3]).reshape(-1)
    want = np.arange(65536, dtype="<u2").view("<f2").astype(np.float32)
    numbers = ~np.isnan(want)
    assert_same_bits(got[numbers], want[numbers], "f16")
    assert np.isnan(got[~numbers]).all()


def test_cache_f16_rounds_every_kind_of_value(isa: str) -> None:
    """One position per value: attention over a single position gives back what was stored."""
    values = np.array(
        [0.0, -0.0, 1.0, 1 + 2**-11, 1 + 3 * 2**-11, 65504.0, 65519.9, 65520.0, -1e9, 6e-8, 2.9e-8,
         3.1e-8, -6e-5, 6.1e-5, 1e-30, 1 / 3], dtype=np.float32,
    ).reshape(1, 16)  # fmt: skip
    kv = core.KVStore([((0,), 1)], 1, 16, "f16")
    out, zero = core.Buf.zeros(1, 16), core.Buf.zeros(1, 16)
    spec = core.AttendSpec(0, 0.25, 0.0, 0, None)
    context(isa).attend(zero, zero, core.Buf(values), kv, spec, step_of([0]), out)
    np.testing.assert_array_equal(out.array, ref_ops.store(values, "f16"))


def test_cache_q8_0_rounds_to_a_scale_per_32_values(isa: str) -> None:
    """Also a short block, zeros, the largest and smallest scales and ties."""
    values = random_x(1, 240, seed=16)
    values[:, 32:64] = 0.0
    values[:, 64:96] = np.linspace(-8.319e6, 8.319e6, 32)
    values[:, 96:128] *= 1e-4
    values[:, 128:160] *= 1e-6
    values[:, 160:192] = np.arange(-127, 128, 8)[:32] / 2
    kv = core.KVStore([((0,), 1)], 1, 240, "q8_0")
    out, zero = core.Buf.zeros(1, 240), core.Buf.zeros(1, 240)
    spec = core.AttendSpec(0, 0.25, 0.0, 0, None)
    context(isa).attend(zero, zero, core.Buf(values), kv, spec, step_of([0]), out)
    np.testing.assert_array_equal(out.array, ref_ops.store(values, "q8_0"))
    error = np.abs(out.array - values).reshape(-1, 16)[:6].max(axis=1)
    most = np.abs(values).reshape(-1, 16)[:6].max(axis=1)
    assert (error <= most * 0.02).all()


def test_gather_takes_the_rows_asked_for(isa: str) -> None:
    x, out = random_x(7, 33, seed=14), core.Buf.zeros(4, 33)
    step = step_of(list(range(7)), logit_rows=[6, 0, 3, 3])
    context(isa).gather(core.Buf(x), step, out)
    assert_same_bits(out.array, x[[6, 0, 3, 3]], "gather")


def test_read_all_gives_the_same_sum_at_any_number_of_threads(isa: str) -> None:
    data = np.random.default_rng(15).integers(0, 256, 3 << 20, dtype=np.uint8)
    want = int(data.view("<u8").sum(dtype=np.uint64))
    assert [context(isa, n).read_all(data) for n in THREADS] == [want] * len(THREADS)
    assert context(isa).read_all(data[:0]) == 0
