"""Unpacking: what the kernels refuse, and strips of rows on several threads."""

from __future__ import annotations

import numpy as np
import pytest
from kernels.cases import THREADS, context

from rllama._kernels import core
from rllama.errors import ShapeError
from rllama.making import unpacked
from rllama.packed import PackedView, packed_dtype, unpack_along
from rllama.quant import dequantize

ISA = core.isa_levels()[0][0]


def call(**changes: object) -> None:
    """Four rows of 64 columns in two groups; every argument may be replaced."""
    given: dict[str, object] = {
        "words": np.zeros(4 * 8 * 4, dtype=np.uint8), "steps": (4, 1), "bits": 4,
        "across_rows": False, "first_row": 0, "inputs": np.arange(64, dtype=np.int32),
        "group_of_block": np.array([0, 1], dtype=np.int32),
        "heads": np.zeros((2, 4, 4), dtype=np.uint8), "offsets": np.zeros((2, 4), dtype=np.int16),
        "out": np.zeros((4, 40), dtype=np.uint8),
    }  # fmt: skip
    context(ISA).unpack(*(given | changes).values())  # type: ignore[arg-type]


REFUSED: dict[str, dict[str, object]] = {
    "bits": {"bits": 5},
    "across of 3": {"bits": 3, "across_rows": True},
    "words": {"words": np.zeros(4 * 8 * 4 - 1, dtype=np.uint8)},
    "rows beyond": {"first_row": 1},
    "rows below": {"first_row": -1},
    "steps": {"steps": (0, 1)},
    "steps beyond": {"steps": (5, 1)},
    "inputs": {"inputs": np.zeros(63, dtype=np.int32)},
    "input beyond": {"inputs": np.full(64, 64, dtype=np.int32)},
    "input below": {"inputs": np.full(64, -1, dtype=np.int32)},
    "group beyond": {"group_of_block": np.array([0, 2], dtype=np.int32)},
    "group below": {"group_of_block": np.array([0, -1], dtype=np.int32)},
    "heads": {"heads": np.zeros((2, 3, 4), dtype=np.uint8)},
    "head bytes": {"heads": np.zeros((2, 4, 3), dtype=np.uint8)},
    "offsets": {"offsets": np.zeros((2, 3), dtype=np.int16)},
    "offset groups": {"offsets": np.zeros((1, 4), dtype=np.int16)},
    "out": {"out": np.zeros((4, 39), dtype=np.uint8)},
    "out rows": {"out": np.zeros((5, 40), dtype=np.uint8)},
}


def test_unpack_arguments_of_these_tests_are_right() -> None:
    call()
    call(inputs=None)


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED)
def test_unpack_refuses(changes: dict[str, object]) -> None:
    with pytest.raises(ShapeError, match="unpack: "):
        call(**changes)


@pytest.mark.parametrize("n_threads", THREADS)
@pytest.mark.parametrize("layout", ["inputs", "rows", "across"])
@pytest.mark.parametrize("n_rows", [8, 64, 200])
def test_unpack_equals_numpy_in_every_layout(layout: str, n_rows: int, n_threads: int) -> None:
    rng = np.random.default_rng(n_rows)
    groups = rng.permutation(np.repeat(np.arange(3, dtype=np.int32), 32))
    shapes = {"inputs": (12, n_rows), "rows": (n_rows, 12), "across": (96, n_rows // 8)}
    words = rng.integers(0, 2**32, shapes[layout], dtype=np.uint32)
    zeros = rng.integers(0, 2**32, (3, n_rows // 8), dtype=np.uint32)
    scales = rng.uniform(0.5, 1.0, (3, n_rows)).astype(np.float16)
    if layout == "rows":
        zeros, scales = zeros.T, scales.T
    view = PackedView(words, zeros, scales, groups, 4, layout, 1,  # type: ignore[arg-type]
                      packed_dtype(4, groups, scales), (n_rows, 96), "test")  # fmt: skip
    for first, last in ((0, n_rows), (3, n_rows - 2)):
        part = view.rows(first, last)
        made = unpacked(part, context(ISA, n_threads))
        assert made.column_order is not None
        values = dequantize("Q4_G", made.data, made.shape)
        np.testing.assert_array_equal(values, part.to_f32()[:, made.column_order])


def test_unpack_along_reads_numbers_across_words() -> None:
    bits = np.random.default_rng(1).integers(0, 2, (5, 96), dtype=np.uint8)
    words = np.packbits(bits, axis=1, bitorder="little").view("<u4")
    want = bits.reshape(5, 32, 3) @ np.array([1, 2, 4], dtype=np.uint8)
    np.testing.assert_array_equal(unpack_along(words, 3), want)


def test_unpack_words_at_odd_addresses() -> None:
    """Data of a safetensors file begins wherever its header ends."""
    rng = np.random.default_rng(2)
    raw = rng.integers(0, 256, 4 * 4 * 8 + 3, dtype=np.uint8)
    words = np.frombuffer(raw.data[3:], dtype="<u4").reshape(4, 8)
    assert words.ctypes.data % 4
    zeros = np.zeros((1, 1), dtype=np.uint32)
    scales = np.ones((1, 8), dtype=np.float16)
    groups = np.zeros(32, dtype=np.int32)
    view = PackedView(words, zeros, scales, groups, 4, "inputs", 0,
                      packed_dtype(4, groups, scales), (8, 32), "test")  # fmt: skip
    made = unpacked(view, context(ISA))
    np.testing.assert_array_equal(dequantize("Q4_G", made.data, made.shape), view.to_f32())
