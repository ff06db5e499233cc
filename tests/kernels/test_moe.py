"""The mixture of experts: the same numbers as its products one by one, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from kernels.cases import (
    LEVELS,
    THREADS,
    Case,
    assert_same_bits,
    context,
    matmul,
    random_weight,
    random_x,
)
from reference import ref_ops
from reference.ref_ops import F32, F64

from rllama._kernels import core
from rllama.errors import ShapeError


def row(values: F32) -> core.Weight:
    return core.Weight(values.reshape(-1).view(np.uint8), 0, 1, values.size, "bias")


@dataclass(frozen=True, eq=False)
class Layer:
    """Operands of one op; biases [E, width] or None."""

    router: Case
    gate: list[Case]
    up: list[Case]
    down: list[Case]
    n_used: int
    normalise: bool = True
    activation: str = "silu"
    router_bias: F32 | None = None
    biases: tuple[F32, F32, F32] | None = None

    def experts(self) -> core.Experts:
        biases = [tuple(map(row, bias)) for bias in self.biases or ((), (), ())]
        return core.Experts(
            self.router.weight,
            *(tuple(case.weight for case in cases) for cases in (self.gate, self.up, self.down)),
            n_used=self.n_used, normalise=self.normalise, activation=self.activation,
            router_bias=None if self.router_bias is None else row(self.router_bias),
            gate_bias=biases[0], up_bias=biases[1], down_bias=biases[2],
        )  # fmt: skip

    def weights(self, logits: F64) -> dict[int, float]:
        """The chosen experts of a token, ids ascending, and what each counts."""
        order = sorted(range(len(logits)), key=lambda e: (-logits[e], e))
        chosen = sorted(order[: self.n_used])
        powers = np.exp(logits - logits.max())
        total = powers[chosen].sum() if self.normalise else powers.sum()
        return {e: float(powers[e] / total) for e in chosen}


def layer(
    fmt: str = "F32", n_experts: int = 6, n_used: int = 2, dim: int = 64, ffn: int = 96,
    *, biased: bool = False, **rest: object,
) -> Layer:  # fmt: skip
    def cases(n_rows: int, n_cols: int, seed: int) -> list[Case]:
        return [random_weight(fmt, n_rows, n_cols, seed=100 * e + seed) for e in range(n_experts)]

    if biased:
        rest["router_bias"] = random_x(1, n_experts, seed=9)
        rest["biases"] = tuple(random_x(n_experts, n, seed=10 + n) for n in (ffn, ffn + 0, dim))
    return Layer(
        random_weight("F32", n_experts, dim, seed=1), cases(ffn, dim, 2), cases(ffn, dim, 3),
        cases(dim, ffn, 4), n_used, **rest,  # type: ignore[arg-type]
    )  # fmt: skip


def moe(isa: str, given: Layer, x: F32, into: F32, n_threads: int = 1) -> F32:
    out = core.Buf(into.copy())
    context(isa, n_threads).moe(core.Buf(x), given.experts(), out)
    return np.asarray(out.array)


def one_by_one(isa: str, given: Layer, x: F32, into: F32) -> F32:
    """Token by token and product by product, with the ops that dense models use."""
    ctx, out = context(isa), into.copy()
    (logits,) = matmul(ctx, x, given.router.weight)
    if given.router_bias is not None:
        logits = logits + given.router_bias
    for t in range(len(x)):
        for e, weight in given.weights(logits[t].astype(np.float64)).items():
            gate, up = matmul(ctx, x[t : t + 1], given.gate[e].weight, given.up[e].weight)
            if given.biases is not None:
                gate, up = gate + given.biases[0][e], up + given.biases[1][e]
            unit = core.Buf(gate)
            ctx.glu(unit, core.Buf(up), given.activation)
            (down,) = matmul(ctx, unit.array, given.down[e].weight)
            if given.biases is not None:
                down = down + given.biases[2][e]
            ctx.add(core.Buf(down), core.Buf(out[t : t + 1]), float(np.float32(weight)))
    return out


KINDS: dict[str, Callable[[], Layer]] = {
    "two of six": lambda: layer(),
    "softmax over all": lambda: layer(n_experts=9, n_used=4, normalise=False),
    "one of one": lambda: layer(n_experts=1, n_used=1),
    "all": lambda: layer(n_experts=4, n_used=4),
    "Q4_0": lambda: layer("Q4_0", n_experts=40, n_used=8),
    "biased": lambda: layer("BF16", biased=True, activation="swiglu_clamped"),
    "odd widths": lambda: layer(dim=17, ffn=3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_moe_is_its_products_to_the_bit(isa: str, kind: str) -> None:
    given = KINDS[kind]()
    dim = given.router.n_cols
    for n_tokens in (1, 2, 45):
        x, into = random_x(n_tokens, dim, seed=5), random_x(n_tokens, dim, seed=6)
        want = one_by_one(isa, given, x, into)
        for n_threads in THREADS:
            got = moe(isa, given, x, into, n_threads)
            assert_same_bits(got, want, f"{n_tokens} tokens, {n_threads} threads")


def test_moe_of_a_long_prompt_is_that_of_its_pieces(isa: str) -> None:
    """More pairs than a slice holds, and experts with enough tokens for panels."""
    given = layer("Q8_0", n_experts=5, n_used=3)
    x, into = random_x(700, 64, seed=7), random_x(700, 64, seed=8)
    want = moe(isa, given, x, into, 2)
    pieces = [slice(0, 1), slice(1, 30), slice(30, 400), slice(400, 700)]
    got = np.concatenate([moe(isa, given, x[piece], into[piece]) for piece in pieces])
    assert_same_bits(got, want, "pieces")


@pytest.mark.parametrize("kind", ["two of six", "softmax over all", "odd widths"])
def test_moe_matches_float64(isa: str, kind: str) -> None:
    given = KINDS[kind]()
    dim = given.router.n_cols
    x, into = random_x(7, dim, seed=5), random_x(7, dim, seed=6)
    want = into.astype(np.float64)
    for t in range(7):
        wide = x[t].astype(np.float64)
        for e, weight in given.weights(given.router.values @ wide).items():
            unit = ref_ops.glu(given.gate[e].values @ wide, given.up[e].values @ wide)
            want[t] += weight * (given.down[e].values @ unit)
    got = moe(isa, given, x, into)
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("isa", LEVELS[-1:])
def test_moe_equal_logits_take_the_lower_id(isa: str) -> None:
    """All logits are 0: experts 0 and 1 are it, each with a half."""
    zero = Case("F32", np.zeros(6 * 64 * 4, np.uint8), 6, 64)
    given = layer()
    given = Layer(zero, given.gate, given.up, given.down, 2)
    x, into = random_x(3, 64, seed=5), np.zeros((3, 64), np.float32)
    first = Layer(zero, given.gate[:2], given.up[:2], given.down[:2], 2)
    two = Layer(Case("F32", np.zeros(2 * 64 * 4, np.uint8), 2, 64), *(
        [first.gate, first.up, first.down]), 2)  # fmt: skip
    assert_same_bits(moe(isa, given, x, into), moe(isa, two, x, into), "ties")


def test_moe_not_a_number_stays_in_its_token(isa: str) -> None:
    given = layer()
    x, into = random_x(20, 64, seed=5).copy(), random_x(20, 64, seed=6)
    want = moe(isa, given, x, into)
    x[3, 7] = np.nan
    got = moe(isa, given, x, into)
    assert np.isnan(got[3]).all()
    others = np.arange(20) != 3
    assert_same_bits(got[others], want[others], "others")


def refused(**changes: object) -> Callable[[], object]:
    def make() -> object:
        given = layer()
        weights = {
            name: tuple(case.weight for case in getattr(given, name))
            for name in ("gate", "up", "down")
        }
        numbers = {"router": given.router.weight, "n_used": 2, "normalise": True}
        return core.Experts(**{**numbers, **weights, **changes})  # type: ignore[arg-type]

    return make


SMALL = random_weight("F32", 5, 64, seed=1).weight


@pytest.mark.parametrize(
    "make",
    [
        refused(n_used=0), refused(n_used=7), refused(gate=()), refused(up=(SMALL,) * 6),
        refused(down=(SMALL,)), refused(router=SMALL), refused(activation="relu"),
        refused(router_bias=SMALL), refused(gate_bias=(row(np.ones(96, np.float32)),) * 5),
        refused(up_bias=(row(np.ones(95, np.float32)),) * 6),
    ],
    ids=["none", "too many", "no gate", "up", "down", "router", "activation", "router bias",
         "gate biases", "up bias"],
)  # fmt: skip
def test_experts_that_do_not_fit_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ShapeError, match=r"expert|activation"):
        make()


def test_moe_of_another_width_is_refused() -> None:
    with pytest.raises(ShapeError, match="experts of width 64"):
        moe(LEVELS[0], layer(), random_x(2, 63, seed=1), random_x(2, 63, seed=1))
    with pytest.raises(ShapeError, match="experts of width 64"):
        moe(LEVELS[0], layer(), random_x(2, 64, seed=1), random_x(3, 64, seed=1))
