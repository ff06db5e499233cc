"""Rows beyond the 1,024 columns that activations are quantised at a time: each token as alone."""

from __future__ import annotations

import pytest
from kernels.cases import (
    FLOATS,
    FORMATS,
    assert_same_bits,
    context,
    matmul,
    random_weight,
    random_x,
)


@pytest.mark.parametrize("n_tokens", [2, 9, 40], ids=lambda n: f"T{n}")
@pytest.mark.parametrize("fmt", [f for f in FORMATS if f in ("Q4_0", "Q8_0", "Q4_K", *FLOATS)])
def test_matmul_of_wide_rows_is_the_same_in_company(isa: str, fmt: str, n_tokens: int) -> None:
    n_cols = 2304 if fmt not in FLOATS else 2091
    case = random_weight(fmt, 35, n_cols, seed=1)
    x = random_x(n_tokens, n_cols, seed=2)
    for n_threads in (1, 2):
        together = matmul(context(isa, n_threads), x, case.weight)[0]
        for t in range(n_tokens):
            alone = matmul(context(isa), x[t : t + 1], case.weight)[0]
            assert_same_bits(together[t : t + 1], alone, f"token {t}, {n_threads} threads")
