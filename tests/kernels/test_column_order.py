"""A weight whose columns lie in another order than its inputs: x is gathered, nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernels.cases import (
    FLOATS,
    FORMATS,
    THREADS,
    Case,
    assert_same_bits,
    context,
    matmul,
    random_weight,
    random_x,
    step_of,
)
from numpy.typing import NDArray

from rllama._kernels import core
from rllama.cpu import CpuBackend
from rllama.dtypes import F16, F32, dtype_by_name
from rllama.errors import ShapeError
from rllama.tensor import TensorView

Order = NDArray[np.int32]


def order_of(n: int, seed: int) -> Order:
    return np.random.default_rng(seed).permutation(n).astype(np.int32)


def ordered(case: Case, order: Order) -> core.Weight:
    number = FORMATS.index(case.fmt)
    return core.Weight(case.raw, number, case.n_rows, case.n_cols, "test", order)


@pytest.mark.parametrize("n_tokens", [1, 5, 13, 40], ids=lambda n: f"T{n}")
@pytest.mark.parametrize("fmt", FORMATS)
def test_column_order_equals_gathered_inputs(isa: str, fmt: str, n_tokens: int) -> None:
    n_cols = 172 if fmt in FLOATS else 256
    case, order = random_weight(fmt, 67, n_cols, seed=1), order_of(n_cols, seed=2)
    x = random_x(n_tokens, n_cols, seed=3)
    want = matmul(context(isa), np.ascontiguousarray(x[:, order]), case.weight)[0]
    for n_threads in THREADS:
        got = matmul(context(isa, n_threads), x, ordered(case, order))[0]
        assert_same_bits(got, want, f"{n_threads} threads")


@pytest.mark.parametrize("n_tokens", [1, 9, 40], ids=lambda n: f"T{n}")
def test_column_order_of_each_weight_is_its_own(isa: str, n_tokens: int) -> None:
    """Two orders, one of them twice, and none: as one by one."""
    first, second = order_of(288, seed=4), order_of(288, seed=5)
    orders = (first, None, second, first)
    cases = [random_weight(fmt, 33, 288, seed=i) for i, fmt in enumerate(("Q4_0",) * 3 + ("Q8_0",))]
    weights = [c.weight if o is None else ordered(c, o) for c, o in zip(cases, orders, strict=True)]
    x = random_x(n_tokens, 288, seed=6)
    together = matmul(context(isa, 2), x, *weights)
    for out, weight in zip(together, weights, strict=True):
        assert_same_bits(out, matmul(context(isa), x, weight)[0], "alone")


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (np.arange(31), "31 for 32 columns"),
        (np.full(32, 3), "no permutation: column 1 has input 3"),
        (np.arange(32) - 1, "column 0 has input -1"),
        (np.arange(32) + 1, "column 31 has input 32"),
    ],
    ids=["short", "twice", "below", "beyond"],
)
def test_column_order_that_is_no_permutation_is_refused(order: Order, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        ordered(random_weight("Q8_0", 4, 32, seed=1), order.astype(np.int32))


def test_column_order_of_an_embedding_is_refused() -> None:
    table = ordered(random_weight("Q8_0", 4, 32, seed=1), order_of(32, seed=2))
    with pytest.raises(ShapeError, match="embed: test has an order of columns"):
        context(core.isa_levels()[0][0]).embed(step_of([0]), table, core.Buf.zeros(1, 32))


def view(order: Order | None, *, fmt: str = "F32") -> TensorView:
    dtype = dtype_by_name(fmt)
    return TensorView(memoryview(bytes(dtype.n_bytes((3, 32)))), dtype, (3, 32), "a.file:w", order)


def test_place_checks_the_order_and_names_the_tensor() -> None:
    with pytest.raises(ShapeError, match=r"a\.file:w: column order is no permutation"):
        CpuBackend(n_threads=1).place(view(np.zeros(32, dtype=np.int32)))


@pytest.mark.parametrize("f16", [False, True])
def test_place_keeps_the_order_in_either_type(f16: bool) -> None:
    rng, order = np.random.default_rng(7), order_of(32, seed=8)
    values = rng.standard_normal((3, 32)).astype(np.float16).astype(np.float32)
    placed = CpuBackend(n_threads=1).place(
        replace(view(order), data=memoryview(values.tobytes())), f16=f16
    )
    assert placed.format_name == (F16 if f16 else F32).name
    x = rng.standard_normal((2, 32)).astype(np.float32)
    got = matmul(context(core.isa_levels()[0][0]), x, placed)[0]
    np.testing.assert_allclose(got, x[:, order] @ values.T, rtol=1e-4, atol=1e-5)


def test_place_keeps_equal_orders_once_and_the_natural_one_not_at_all() -> None:
    backend, order = CpuBackend(n_threads=1), order_of(32, seed=9)
    first, again = backend._orders.one_of(order), backend._orders.one_of(order.copy())
    assert first is again is order
    assert backend._orders.one_of(order_of(32, seed=10)) is not order
    assert backend._orders.one_of(np.arange(32, dtype=np.int32)) is None
    assert backend._orders.one_of(None) is None
