"""Byte-exact against ggml's own quantisers, and within the format's error where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from rllama.dtypes import DTYPES, Q8_0, dtype_by_name
from rllama.errors import FormatError, ShapeError, UnsupportedError
from rllama.quant import CODECS, dequantize, quantize

NAMES = tuple(CODECS)
BLOCK_NAMES = ("Q8_0", "Q4_0", "Q8_F32")


def samples() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    normal = rng.standard_normal((64, 256)).astype(np.float32)
    halves = (rng.integers(-254, 255, (16, 64)) / 2).astype(np.float32)
    halves[:, ::32] = 127.0  # scale exactly 1, so that every half is a tie
    huge = (normal[:8] * np.float32(1e6)).astype(np.float32)
    tiny = (normal[:8] * np.float32(1e-9)).astype(np.float32)
    mixed = (normal[:8] * np.exp(rng.uniform(-20, 10, (8, 256)))).astype(np.float32)
    zeros = np.zeros((3, 64), np.float32)
    one_sided = np.abs(normal[:8]) * np.float32(-1)
    return {"normal": normal, "halves": halves, "huge": huge, "tiny": tiny, "mixed": mixed,
            "zeros": zeros, "one_sided": one_sided}  # fmt: skip


SAMPLES = samples()


def test_registry_covers_every_dtype() -> None:
    assert set(CODECS) == {dtype.name for dtype in DTYPES}


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_quantize_matches_ggml_to_the_byte(name: str, sample: str) -> None:
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    x = SAMPLES[sample]
    with np.errstate(all="ignore"):
        want = quants.quantize(x, GGMLQuantizationType[name])
    got = quantize(name, x)
    assert got.dtype == np.uint8
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_dequantize_matches_ggml_to_the_bit(name: str) -> None:
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    x = SAMPLES["mixed"]
    data = quantize(name, x)
    typed = data.view(np.float16) if name == "F16" else data
    typed = data.view(np.float32) if name == "F32" else typed
    want = quants.dequantize(typed, GGMLQuantizationType[name])
    np.testing.assert_array_equal(dequantize(name, data, x.shape), want)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(32,), (4, 64), (2, 3, 96)], ids=str)
def test_quantize_gives_row_bytes_per_row(name: str, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    data = quantize(name, x)
    assert data.shape == (*shape[:-1], dtype_by_name(name).row_bytes(shape[-1]))
    assert dequantize(name, data, shape).shape == shape


@pytest.mark.parametrize(
    ("name", "steps"), [("Q8_0", 127), ("Q8_F32", 127), ("Q4_0", 8)], ids=lambda v: str(v)
)
def test_round_trip_error_is_within_half_a_step(name: str, steps: int) -> None:
    """Half a step, plus what rounding the scale to f16 (2^-11) adds; Q4_0 clips one side."""
    x = SAMPLES["normal"]
    back = dequantize(name, quantize(name, x), x.shape)
    extreme = np.abs(x.reshape(-1, 32)).max(axis=1, keepdims=True)
    share = 0.5 / steps if steps == 127 else 1.0 / steps
    error = np.abs((x - back).reshape(-1, 32))
    assert np.all(error <= extreme * (share + 2.0**-11) + 1e-7)


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_floats_round_to_nearest_even(name: str) -> None:
    step = 2.0**-10 if name == "F16" else 2.0**-7
    x = np.array([1 + step / 2, 1 + 3 * step / 2, 1 + step * 0.51], np.float32)
    want = np.array([1.0, 1 + 2 * step, 1 + step], np.float32)
    np.testing.assert_array_equal(dequantize(name, quantize(name, x), x.shape), want)


@pytest.mark.parametrize("name", BLOCK_NAMES)
@pytest.mark.parametrize("scale", [0.0, 1e-45, 3e-39], ids=str)
def test_zero_and_subnormal_blocks_give_finite_values(name: str, scale: float) -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, ::3] = np.float32(scale)
    back = dequantize(name, quantize(name, x), x.shape)
    assert np.isfinite(back).all()
    assert np.abs(back).max() <= 2 * scale


def test_bf16_keeps_nan_and_infinity() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0], np.float32)
    x = np.concatenate([x, np.array([0x7F800001], np.uint32).view(np.float32)])
    back = dequantize("BF16", quantize("BF16", x), x.shape)
    assert np.isnan(back[[0, 4]]).all()
    np.testing.assert_array_equal(back[1:4], x[1:4])


@pytest.mark.parametrize("name", BLOCK_NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_block_types_refuse_values_that_are_not_finite(name: str, bad: float) -> None:
    x = np.ones((2, 32), np.float32)
    x[1, 5] = bad
    with pytest.raises(FormatError, match="NaN or infinity"):
        quantize(name, x)


def test_quantize_refuses_rows_that_are_no_multiple_of_the_block() -> None:
    with pytest.raises(FormatError, match="33 values"):
        quantize("Q4_0", np.zeros((2, 33), np.float32))


def test_dequantize_refuses_bytes_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="33 bytes"):
        dequantize("Q8_0", bytes(33), (32,))


def test_unknown_type_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="Q9_9"):
        quantize("Q9_9", np.zeros((1, 32), np.float32))


def test_dequantize_reads_bytes_at_any_alignment() -> None:
    x = SAMPLES["normal"][:2, :64]
    data = quantize("Q8_0", x).tobytes()
    shifted = memoryview(b"\0" + data)[1:]
    assert len(shifted) == Q8_0.n_bytes(x.shape)
    np.testing.assert_array_equal(
        dequantize("Q8_0", shifted, x.shape), dequantize("Q8_0", data, x.shape)
    )
