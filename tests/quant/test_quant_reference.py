"""Exact against ggml's own codecs, both ways, and within the format's error where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from rllama.dtypes import DTYPES, Q8_0, dtype_by_name
from rllama.errors import FormatError, ShapeError, UnsupportedError
from rllama.quant import CODECS, dequantize, quantize
from rllama.quant.noise import random_blocks

WRITTEN = tuple(name for name, codec in CODECS.items() if codec.quantize is not None)
BLOCK_NAMES = tuple(name for name in WRITTEN if not dtype_by_name(name).is_float)
OF_GGUF = tuple(dtype.name for dtype in DTYPES if dtype.gguf_id is not None)


def samples() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    normal = rng.standard_normal((64, 256)).astype(np.float32)
    halves = (rng.integers(-254, 255, (16, 64)) / 2).astype(np.float32)
    halves[:, ::32] = 127.0  # scale exactly 1, so that every half is a tie
    huge = (normal[:8] * np.float32(1e6)).astype(np.float32)
    tiny = (normal[:8] * np.float32(1e-9)).astype(np.float32)
    mixed = (normal[:8] * np.exp(rng.uniform(-20, 10, (8, 256)))).astype(np.float32)
    zeros = np.zeros((4, 64), np.float32)
    one_sided = np.abs(normal[:8]) * np.float32(-1)
    return {"normal": normal, "halves": halves, "huge": huge, "tiny": tiny, "mixed": mixed,
            "zeros": zeros, "one_sided": one_sided}  # fmt: skip


SAMPLES = samples()


def test_registry_covers_every_dtype() -> None:
    assert set(CODECS) == {dtype.name for dtype in DTYPES}


@pytest.mark.parametrize("sample", SAMPLES)
# The package has no Q4_K this way; tests/models/test_quantize.py says how good ours is.
@pytest.mark.parametrize("name", [n for n in WRITTEN if n in OF_GGUF and n != "Q4_K"])
def test_quantize_matches_ggml_to_the_byte(name: str, sample: str) -> None:
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    x = SAMPLES[sample]
    if x.shape[-1] % dtype_by_name(name).block_len:
        x = np.ascontiguousarray(x.reshape(1, -1)[:, : x.size // 256 * 256])
    with np.errstate(all="ignore"):
        want = quants.quantize(x, GGMLQuantizationType[name])
    got = quantize(name, x)
    assert got.dtype == np.uint8
    assert got.tobytes() == want.tobytes()


def any_blocks(name: str, *, sane: bool) -> np.ndarray:
    """4000 blocks of any bytes; if sane, with scales of ordinary size."""
    dtype, rng = dtype_by_name(name), np.random.default_rng(3)
    if sane:
        blocks = random_blocks(name, rng, 4000 * dtype.block_len, 1.0)
        return blocks.reshape(-1, dtype.block_bytes)
    return rng.integers(0, 256, (4000, dtype.block_bytes), dtype=np.uint8)


@pytest.mark.parametrize("sane", [True, False], ids=["sane", "any bytes"])
@pytest.mark.parametrize("name", OF_GGUF)
def test_dequantize_matches_ggml_to_the_bit(name: str, sane: bool) -> None:
    """Every code of every book occurs; where scales are any bytes, some are not finite."""
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    blocks = any_blocks(name, sane=sane)
    typed = blocks.view(np.float16) if name == "F16" else blocks
    typed = blocks.view(np.float32) if name == "F32" else typed
    with np.errstate(all="ignore"):
        want = quants.dequantize(typed, GGMLQuantizationType[name])
    got = dequantize(name, blocks, want.shape)
    assert np.isfinite(got).all() or not sane
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["Q4_G", "Q8_G"])
def test_dequantize_groups_is_scale_times_distance_from_zero(name: str) -> None:
    rng = np.random.default_rng(4)
    whole = rng.integers(0, 256, (9, 16 if name == "Q4_G" else 32), dtype=np.uint8)
    head = rng.standard_normal((9, 2)).astype(np.float16)
    blocks = np.concatenate([head.view(np.uint8), whole], axis=1)
    got = dequantize(name, blocks, (9, 32))
    for i in range(9):
        q = whole[i].view(np.int8) if name == "Q8_G" else [*(whole[i] & 15), *(whole[i] >> 4)]
        scale, zero = np.float32(head[i])
        np.testing.assert_array_equal(got[i], [scale * (np.float32(v) - zero) for v in q])


@pytest.mark.parametrize("name", CODECS)
def test_random_blocks_have_the_spread_asked_for(name: str) -> None:
    """Powers of two alone are scales of MXFP4: up to a factor of sqrt(2) off."""
    blocks = random_blocks(name, np.random.default_rng(5), 256 * 400, 0.03)
    values = dequantize(name, blocks, (400, 256))
    share = np.sqrt(np.mean(values.astype(np.float64) ** 2)) / 0.03
    assert 0.7 < share < 1.42 if name == "MXFP4" else 0.95 < share < 1.1
    assert abs(values.mean()) < 0.003


@pytest.mark.parametrize("name", [name for name in CODECS if name not in WRITTEN])
def test_quantize_to_a_type_that_is_only_read_is_unsupported(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{name} is read"):
        quantize(name, np.zeros((1, 256), np.float32))


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("shape", [(32,), (4, 64), (2, 3, 96)], ids=str)
def test_quantize_gives_row_bytes_per_row(name: str, shape: tuple[int, ...]) -> None:
    if shape[-1] % dtype_by_name(name).block_len:
        shape = (*shape[:-1], 256)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    data = quantize(name, x)
    assert data.shape == (*shape[:-1], dtype_by_name(name).row_bytes(shape[-1]))
    assert dequantize(name, data, shape).shape == shape


@pytest.mark.parametrize(
    ("name", "share"),
    [("Q8_0", 0.5 / 127), ("Q8_F32", 0.5 / 127), ("Q4_0", 1 / 8), ("Q5_0", 1 / 16),
     ("Q4_1", 1 / 15), ("Q5_1", 1 / 31), ("MXFP4", 1 / 4), ("Q4_G", 1 / 15), ("Q8_G", 1 / 255)],
    ids=lambda v: str(v),
)  # fmt: skip
def test_round_trip_error_is_within_half_a_step(name: str, share: float) -> None:
    """A share of the largest value: half a step, or a whole one where one side is clipped, or of a
    range twice as wide; plus what rounding the scale to f16 adds, 2^-11 of the value, or, where
    there is a min, 2^-11 of twice that range and of the min."""
    x = SAMPLES["normal"]
    back = dequantize(name, quantize(name, x), x.shape)
    extreme = np.abs(x.reshape(-1, 32)).max(axis=1, keepdims=True)
    error = np.abs((x - back).reshape(-1, 32))
    rounding = 2.0**-11 * (3 if name in ("Q4_1", "Q5_1", "Q4_G", "Q8_G") else 1)
    assert np.all(error <= extreme * (share + rounding) + 1e-7)


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_floats_round_to_nearest_even(name: str) -> None:
    step = 2.0**-10 if name == "F16" else 2.0**-7
    x = np.array([1 + step / 2, 1 + 3 * step / 2, 1 + step * 0.51], np.float32)
    want = np.array([1.0, 1 + 2 * step, 1 + step], np.float32)
    np.testing.assert_array_equal(dequantize(name, quantize(name, x), x.shape), want)


@pytest.mark.parametrize("name", BLOCK_NAMES)
@pytest.mark.parametrize("scale", [0.0, 1e-45, 3e-39], ids=str)
def test_zero_and_subnormal_blocks_give_finite_values(name: str, scale: float) -> None:
    x = np.zeros((1, 256), np.float32)
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
    x = np.ones((2, 256), np.float32)
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
