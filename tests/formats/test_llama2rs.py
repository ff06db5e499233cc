"""llama2.rs files of both ages: known by their size, read to the bit, refused where they lie."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from formats.llama2rs_writer import llama2rs_bytes
from formats.writers import random_model, tiny_config, write_llama2c
from models.runner import make, relative_error, tokens
from reference.ref_model import forward as ref_forward

from rllama.cpu import CpuBackend
from rllama.errors import FormatError, RllamaError, UnsupportedError
from rllama.formats.llama2c_header import Llama2cHeader
from rllama.formats.llama2rs_layout import Layout, readings
from rllama.loader import load, open_model
from rllama.making import unpacked
from rllama.packed import PackedView
from rllama.quant import dequantize

CFG = tiny_config(dim=128, ffn_dim=256, n_layers=2, n_heads=8, n_kv_heads=4, head_dim=16,
                  vocab_size=96, rope_style="half", norm_eps=1e-6)  # fmt: skip
BOUND = 3e-2  # as in tests/models/test_llama.py


def write(folder: Path, data: bytes) -> Path:
    path = folder / "llama2rs.bin"
    path.write_bytes(data)
    return path


HEADER_7B = Llama2cHeader(0, 4096, 11008, 32, 32, 32, 32000, 2048, shared_head=False, start=28)
HEADER_70B = Llama2cHeader(0, 8192, 28672, 80, 64, 64, 32000, 2048, shared_head=False, start=28)


@pytest.mark.parametrize(
    ("layout", "n_bytes"),
    [
        (Layout(HEADER_7B, 32, 128, is_new=True), 4_520_919_072),
        (Layout(HEADER_7B, 32, 128, is_new=False), 4_516_364_316),
        (Layout(HEADER_70B, 8, 64, is_new=True), 41_166_864_416),
        (Layout(HEADER_70B, 8, 128, is_new=False), 38_735_478_812),
    ],
    ids=["7B", "7B old", "70B", "70B old"],
)
def test_llama2rs_sizes_of_known_files_tell_their_layout(layout: Layout, n_bytes: int) -> None:
    assert layout.n_bytes == n_bytes
    assert readings(layout.header, n_bytes) == [layout]
    assert readings(layout.header, n_bytes + 4) == []


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "old"])
@pytest.mark.parametrize("n_kv_heads", [8, 4])
@pytest.mark.parametrize("group_size", [32, 64, 256])
def test_llama2rs_weights_and_logits_match(
    group_size: int, n_kv_heads: int, is_new: bool, tmp_path: Path
) -> None:
    cfg = replace(CFG, n_kv_heads=n_kv_heads, norm_eps=1e-6 if is_new else 1e-5)
    data, weights = llama2rs_bytes(cfg, group_size=group_size, is_new=is_new)
    checkpoint = open_model(write(tmp_path, data))
    got = checkpoint.config
    assert got is not None
    assert (got.n_kv_heads, got.norm_eps, got.rope_style) == (n_kv_heads, cfg.norm_eps, "half")
    for name, view in checkpoint.tensors.items():
        if not isinstance(view, PackedView):
            continue
        made = unpacked(view, CpuBackend(n_threads=1))
        values = dequantize("Q4_G", made.data, made.shape)
        order = np.arange(values.shape[1]) if made.column_order is None else made.column_order
        np.testing.assert_allclose(values, weights[name][:, order], rtol=2.0**-23, atol=1e-12)
        np.testing.assert_allclose(view.to_f32(), weights[name], rtol=2.0**-23, atol=1e-12)
        assert (made.column_order is not None) == (is_new and group_size < values.shape[1])
    ids = tokens(cfg, 24)
    run = make(got, checkpoint.tensors).run([(ids, 0, [0])])
    assert relative_error(run, ref_forward(cfg, weights, ids)) < BOUND
    checkpoint.close()


@pytest.mark.parametrize("theta", [10000.0, 1000000.0])
def test_llama2rs_f32_matrices(theta: float, tmp_path: Path) -> None:
    cfg = replace(CFG, rope_theta=theta)
    data, weights = llama2rs_bytes(cfg, group_size=0)
    checkpoint = open_model(write(tmp_path, data))
    got = checkpoint.config
    assert got is not None
    assert got.rope_theta == theta
    ids = tokens(cfg, 24)
    run = make(got, checkpoint.tensors).run([(ids, 0, [0])])
    assert relative_error(run, ref_forward(cfg, weights, ids)) < 3e-6
    checkpoint.close()


def test_llama2rs_scales_beyond_half_precision_stay_exact(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, _ = llama2rs_bytes(CFG, scale_type="<f4")
    with caplog.at_level("WARNING", "rllama"):
        loaded = load(write(tmp_path, data), n_threads=1)
    assert loaded.model.layers[0].wq.format_name == "Q8_F32"
    assert "half precision cannot hold" in caplog.text
    loaded.close()


def test_llama2rs_leaves_llama2c_its_own(tmp_path: Path) -> None:
    model = random_model(CFG, seed=1)
    checkpoint = open_model(write_llama2c(tmp_path / "m.bin", CFG, model))
    assert checkpoint.format_name == "llama2.c"
    checkpoint.close()


def _offset(name: str) -> int:
    header = Llama2cHeader(0, 128, 256, 2, 8, 8, 96, 64, shared_head=False, start=28)
    arrays = Layout(header, 4, 32, is_new=True).arrays()
    return next(at for found, _, at in arrays if found == name)


WQ = _offset("layers.0.wq")
_SCALES, _ORDER = WQ + 128 * 128 // 2 + 16 * 4 * 4, WQ + 128 * 128 // 2 + 16 * 4 * 4 + 128 * 16

DAMAGED: dict[str, tuple[Callable[[bytearray], object], type[RllamaError], str]] = {
    "cut": (lambda d: d.__delitem__(slice(-4, None)), FormatError, "begins like a llama2.c file"),
    "longer": (lambda d: d.extend(bytes(4)), FormatError, "begins like a llama2.c file"),
    "order twice": (
        lambda d: d.__setitem__(slice(_ORDER, _ORDER + 4), d[_ORDER + 4 : _ORDER + 8]),
        FormatError, "does not name each of them once",
    ),
    "order beyond": (
        lambda d: struct.pack_into("<i", d, _ORDER, 128), FormatError, "does not name each",
    ),
    "scale": (
        lambda d: struct.pack_into("<f", d, _SCALES, float("nan")), FormatError, "not finite",
    ),
    "epsilon": (
        lambda d: struct.pack_into("<f", d, 28, float("inf")), FormatError, "epsilon at offset 28",
    ),
    "tables": (
        lambda d: struct.pack_into("<f", d, _offset("cosines"), 0.5), FormatError,
        "not where it should be",
    ),
    "base": (
        lambda d: struct.pack_into("<f", d, _offset("cosines") + 32, 0.1), UnsupportedError,
        "none of the bases",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_llama2rs_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    edit, error, words = DAMAGED[damage]
    data = bytearray(llama2rs_bytes(CFG)[0])
    edit(data)
    with pytest.raises(error, match=words):
        load(write(tmp_path, bytes(data)), n_threads=1)
