"""Every weight type of GGUF from file to logits, beside the same weights as F32.

What the weights are is told by the gguf package, so a wrong layout shows here whatever else agrees.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from formats.writers import GGUF_TYPE_IDS, RawTensor, random_model, raw_gguf, tiny_config
from models.runner import Runner, relative_error, tokens

from rllama.cpu import CpuBackend
from rllama.dtypes import DTYPES
from rllama.loader import open_model
from rllama.models import find

# Rows of 256 and 512 values, so that every type fits; heads of 64.
CFG = tiny_config(dim=256, ffn_dim=512, head_dim=64, n_layers=2)
# Largest |got - want| over the largest |want|. Types with kernels of their own meet activations in
# 8 bits, whose step is 1/127 of a block's largest value: half a step in each of some 14 matrices,
# of random sign, and what later layers make of it. BF16's x is rounded to 2^-9 on avx512bf16.
# Types without kernels become F32 rows, for which every sum is the same.
EIGHT_BITS, BF16 = 3e-2, 1.5e-2


def runner(path: Path, isa: str) -> Runner:
    checkpoint = open_model(path)
    assert checkpoint.config is not None
    model = find(checkpoint.config.arch)(
        checkpoint.config, checkpoint.tensors, CpuBackend(isa=isa, n_threads=2), max_batch_tokens=64
    )
    model.kv_dtype = "f32"
    return Runner(model)


def as_f32(tensor: RawTensor, kind: str) -> RawTensor:
    """The tensor with the values that the gguf package finds in it."""
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    raw = np.frombuffer(tensor.data, dtype={"F32": "<f4", "F16": "<f2"}.get(kind, np.uint8))
    values = quants.dequantize(raw, GGMLQuantizationType[kind])
    return RawTensor(tensor.name, tensor.dims, 0, values.astype("<f4").tobytes())


def test_weight_types_of_gguf_are_all_written_here() -> None:
    ours = {dtype.name: dtype.gguf_id for dtype in DTYPES if dtype.gguf_id is not None}
    assert ours == GGUF_TYPE_IDS


@pytest.mark.parametrize("kind", GGUF_TYPE_IDS)
def test_weight_type_gives_the_logits_of_its_values_as_f32(
    isa: str, kind: str, tmp_path: Path
) -> None:
    raw = raw_gguf(CFG, random_model(CFG, seed=3), kind)
    (tmp_path / "typed.gguf").write_bytes(raw.to_bytes())
    raw.tensors = [t if len(t.dims) == 1 else as_f32(t, kind) for t in raw.tensors]
    (tmp_path / "f32.gguf").write_bytes(raw.to_bytes())
    ids = tokens(CFG, 40)
    typed = runner(tmp_path / "typed.gguf", isa)
    assert typed.model.layers[0].wq.format_name == kind
    got = typed.run([(ids, 0, [3])])
    want = runner(tmp_path / "f32.gguf", isa).run([(ids, 0, [3])])
    assert np.abs(want).max() > 0.1
    if kind in ("F32", "F16") or not CpuBackend(isa=isa, n_threads=1).has_kernels(kind):
        np.testing.assert_array_equal(got, want)
    else:
        assert relative_error(got, want) < (BF16 if kind == "BF16" else EIGHT_BITS)
