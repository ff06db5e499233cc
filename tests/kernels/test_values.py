"""The ops that go value by value: gated units, scale, add, bias, soft cap."""

from __future__ import annotations

import numpy as np
import pytest
from kernels.cases import (
    LEVELS,
    THREADS,
    assert_same_bits,
    assert_within,
    context,
    random_weight,
    random_x,
    step_of,
)
from reference import ref_ops
from reference.ref_ops import F32, F64, U

from rllama._kernels import core
from rllama.cpu import CpuBackend
from rllama.dtypes import F16
from rllama.tensor import TensorView

ACTIVATIONS = ["silu", "gelu", "gelu_tanh", "swiglu_clamped"]
WIDTHS = [1, 3, 17, 64, 100]
TINY = 2.0**-149


def glu(isa: str, gate: F32, up: F32, activation: str, n_threads: int = 1) -> F32:
    out = core.Buf(gate.copy())
    context(isa, n_threads).glu(out, core.Buf(up), activation)
    return np.asarray(out.array)


def glu_bound(gate: F32, want: F64, activation: str) -> F64:
    """A dozen roundings, and what those of the exponent do to e^x: |x| U for each."""
    x = np.abs(gate.astype(np.float64))
    exponent = {
        "silu": 0 * x,
        "gelu": 0 * x,  # what the square loses is put back
        "gelu_tanh": 4 * 1.6 * x * (1 + 0.045 * x**2),
        "swiglu_clamped": 2 * 1.702 * x,
    }[activation]
    return (14 + exponent) * U * np.abs(want) + TINY


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("width", [*WIDTHS, 20000])
def test_glu_matches_reference(isa: str, width: int, activation: str) -> None:
    rng = np.random.default_rng(width)
    reach = {"gelu": 12.5, "gelu_tanh": 8.0}.get(activation, 40.0)
    gate = rng.uniform(-reach, reach, (3, width)).astype(np.float32)
    gate[1] *= np.float32(1e-3)
    up = (5 * rng.standard_normal((3, width))).astype(np.float32)
    want = ref_ops.glu(gate, up, activation)
    for n_threads in THREADS:
        got = glu(isa, gate, up, activation, n_threads)
        assert_within(got, want, glu_bound(gate, want, activation), f"{n_threads} threads")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_glu_far_out_settles(isa: str, activation: str) -> None:
    """Far below nothing is left, but for 1.5 |x| e^-87; far above the gate is open."""
    gate = np.array([[-1e4, -1e30, -14.0, 14.0, 1e4, 3e38, 0.0, -0.0, 1e-40, -1e-45]], np.float32)
    up = np.full_like(gate, 0.5)
    want = ref_ops.glu(np.clip(gate, -1e30, None), up, activation)
    bound = 20 * U * np.abs(want) + np.abs(gate) * 9.2e-39 * (gate < -80) + 1e-37
    assert_within(glu(isa, gate, up, activation), want, bound, activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_glu_not_a_number_stays_in_its_place(isa: str, activation: str) -> None:
    gate, up = random_x(2, 20, seed=1).copy(), random_x(2, 20, seed=2).copy()
    gate[0, 3] = up[1, 19] = np.nan
    got = glu(isa, gate, up, activation)
    assert np.argwhere(np.isnan(got)).tolist() == [[0, 3], [1, 19]]


def softcap(isa: str, x: F32, scale: float, cap: float, n_threads: int = 1) -> F32:
    out = core.Buf(x.copy())
    context(isa, n_threads).softcap(out, scale, cap)
    return np.asarray(out.array)


@pytest.mark.parametrize("width", [*WIDTHS, 20000])
def test_softcap_matches_reference(isa: str, width: int) -> None:
    """Small values keep all their digits: the bound is relative everywhere."""
    rng = np.random.default_rng(width)
    size = 10.0 ** rng.uniform(-8, 2, (3, width))
    x = (rng.choice([-1.0, 1.0], size.shape) * size).astype(np.float32)
    for scale, cap in ((1.0, 30.0), (0.125, 0.5)):
        want = cap * np.tanh(x.astype(np.float64) * scale / cap)
        for n_threads in THREADS:
            got = softcap(isa, x, scale, cap, n_threads)
            assert_within(got, want, 12 * U * np.abs(want), f"{scale} {cap}")
            assert np.abs(got).max() <= np.float32(cap)


def test_softcap_at_the_edges(isa: str) -> None:
    x = np.array([[0.0, 1e-45, -1e-40, 3e38, -3e38, np.inf, -np.inf, np.nan]], dtype=np.float32)
    got = softcap(isa, x, 1.0, 1.0)[0]
    assert got[:3].tolist() == x[0, :3].tolist()
    assert got[3:7].tolist() == [1, -1, 1, -1]
    assert np.isnan(got[7])


@pytest.mark.parametrize("width", WIDTHS)
def test_scale_add_and_bias_round_once(isa: str, width: int) -> None:
    """What was rounded once is the nearest f32, so these are exact."""
    for n_tokens in (1, 2, 17, 33):
        x, y = random_x(n_tokens, width, seed=3), random_x(n_tokens, width, seed=4)
        bias = random_x(1, width, seed=5)
        for n_threads in THREADS:
            ctx, (scaled, added, plain, biased) = (
                context(isa, n_threads),
                (core.Buf(x.copy()), core.Buf(y.copy()), core.Buf(y.copy()), core.Buf(x.copy())),
            )
            ctx.scale(scaled, 0.3)
            assert_same_bits(scaled.array, x * np.float32(0.3), "scale")
            ctx.add(core.Buf(x), added, 0.3)
            exact = y.astype(np.float64) + x.astype(np.float64) * np.float64(np.float32(0.3))
            assert_within(added.array, exact, (1 + 1e-7) * U * np.abs(exact), "add a part")
            ctx.add(core.Buf(x), plain)
            assert_same_bits(plain.array, x + y, "add")
            ctx.add_bias(biased, core.Weight(bias.view(np.uint8).reshape(-1), 0, 1, width))
            assert_same_bits(biased.array, x + bias, "bias")


def every_op(isa: str) -> F32:
    gate = np.linspace(-20, 20, 1003, dtype=np.float32).reshape(1, -1)
    up = random_x(1, 1003, seed=6)
    outs = [glu(isa, gate, up, activation) for activation in ACTIVATIONS]
    added = core.Buf(up.copy())
    context(isa).add(core.Buf(gate), added, 0.7)
    return np.concatenate([*outs, softcap(isa, gate, 0.3, 4.0), added.array])


@pytest.mark.parametrize("isa", LEVELS[1:])
def test_levels_agree_but_for_the_last_bit(isa: str) -> None:
    """Plain C rounds a fused multiply-add through f64: a bit off once in half a milliard."""
    assert_same_bits(every_op(isa), every_op(LEVELS[0]), isa)


def test_place_norm_raises_the_values() -> None:
    values = np.array([0.5, -1.0, 0.25], dtype=np.float16)
    view = TensorView(memoryview(values.tobytes()), F16, (3,), "norm")
    backend = CpuBackend(n_threads=1)
    x = np.array([[1.0, 2.0, 4.0]], dtype=np.float32)
    for offset in (0.0, 1.0):
        out = core.Buf(x.copy())
        backend.add_bias(out, backend.place_norm(view, offset))
        assert out.array.tolist() == (x + values.astype(np.float32) + np.float32(offset)).tolist()


def test_logits_are_scaled_and_capped() -> None:
    backend, x = CpuBackend(n_threads=1), core.Buf(random_x(2, 32, seed=7))
    head, step = random_weight("F32", 40, 32, seed=8).weight, step_of([0, 1], logit_rows=[1])
    plain = backend.logits(x, step, head).astype(np.float64)
    scaled = backend.logits(x, step, head, scale=0.25)
    np.testing.assert_array_equal(scaled, 0.25 * plain)
    capped = backend.logits(x, step, head, scale=0.25, softcap=2.0).copy()
    np.testing.assert_allclose(capped, 2.0 * np.tanh(plain / 8.0), rtol=2e-6)
