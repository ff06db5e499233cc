"""Files that llama.cpp's own quantiser writes run, and err no more than llama.cpp does.

Skipped where the llama-cpp-python package is not installed: it compiles for minutes.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats.writers import random_model, small_vocab, tiny_config, write_gguf
from models.runner import Runner, relative_error, tokens

from rllama.cpu import CpuBackend
from rllama.dtypes import F32
from rllama.loader import open_model
from rllama.models import find
from rllama.tensor import TensorView

pytestmark = pytest.mark.slow

CFG = tiny_config(dim=256, ffn_dim=512, head_dim=64, n_layers=2, vocab_size=512)
# What `llama-quantize` offers and the types that it puts into a file of this shape.
KINDS = {
    "F16": {"F16"}, "BF16": {"BF16"}, "Q4_0": {"Q4_0"}, "Q4_1": {"Q4_1"}, "Q5_0": {"Q5_0"},
    "Q5_1": {"Q5_1"}, "Q8_0": {"Q8_0"}, "Q2_K": {"Q2_K", "Q3_K"}, "Q2_K_S": {"Q2_K"},
    "Q3_K_S": {"Q3_K"}, "Q3_K_M": {"Q3_K"}, "Q3_K_L": {"Q3_K", "Q5_K"}, "Q4_K_S": {"Q4_K"},
    "Q4_K_M": {"Q4_K", "Q6_K"}, "Q5_K_S": {"Q5_K"}, "Q5_K_M": {"Q5_K", "Q6_K"}, "Q6_K": {"Q6_K"},
    "IQ1_S": {"IQ1_S"}, "IQ1_M": {"IQ1_M"}, "IQ2_XXS": {"IQ2_XXS"}, "IQ2_XS": {"IQ2_XS"},
    "IQ2_S": {"IQ2_XS"}, "IQ2_M": {"IQ2_S"}, "IQ3_XXS": {"IQ3_XXS"}, "IQ3_XS": {"IQ3_XXS"},
    "IQ3_S": {"IQ3_S"}, "IQ3_M": {"IQ3_S"}, "IQ4_NL": {"IQ4_NL"}, "IQ4_XS": {"IQ4_XS"},
    "TQ1_0": {"TQ1_0"}, "TQ2_0": {"TQ2_0"},
}  # fmt: skip
# Largest error of a logit over the largest logit, beside llama.cpp's own for the same file: its
# activations have a scale per 256 values for K-quants, ours one per 32.
MORE_THAN_LLAMA_CPP = 1.25


@pytest.fixture(scope="module")
def llama_cpp() -> Any:
    return pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama_cpp") / "f32.gguf"
    return write_gguf(path, CFG, random_model(CFG, 5), "F32", small_vocab(CFG.vocab_size))


@pytest.fixture
def quantised(request: pytest.FixtureRequest, llama_cpp: Any, source: Path, tmp_path: Path) -> Path:
    name = request.param
    path = tmp_path / f"{name}.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    params.nthread = 2
    checkpoint = open_model(source)
    ones = {
        checkpoint.name_in_file(n): np.ones(v.shape[-1], np.float32)
        for n, v in checkpoint.tensors.items()
    }
    checkpoint.close()
    rows = [
        llama_cpp.llama_model_imatrix_data(
            n.encode(), x.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), x.size
        )
        for n, x in ones.items()
    ]
    rows.append(llama_cpp.llama_model_imatrix_data(None, None, 0))
    params.imatrix = (llama_cpp.llama_model_imatrix_data * len(rows))(*rows)
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), params)
    assert code == 0
    return path


def views(path: Path) -> dict[str, TensorView]:
    return {name: view for name, view in open_model(path).tensors.items()
            if isinstance(view, TensorView)}  # fmt: skip


def as_f32(tensors: dict[str, TensorView]) -> dict[str, TensorView]:
    """The values of the weights, as the gguf package finds them."""
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    made = {}
    for name, view in tensors.items():
        kind = view.dtype.name
        raw = np.frombuffer(view.data, {"F32": "<f4", "F16": "<f2"}.get(kind, np.uint8))
        values = quants.dequantize(raw, GGMLQuantizationType[kind]).astype("<f4")
        made[name] = TensorView(memoryview(values.tobytes()), F32, view.shape, name)
    return made


def logits(tensors: dict[str, TensorView], ids: list[int]) -> np.ndarray:
    model = find(CFG.arch)(CFG, tensors, CpuBackend(n_threads=1), max_batch_tokens=64)
    model.kv_dtype = "f32"
    return Runner(model).run([(ids, 0, [3])])


@pytest.mark.parametrize("quantised", KINDS, indirect=True, ids=KINDS)
def test_file_of_llama_cpps_quantiser_runs_as_well_as_there(
    llama_cpp: Any, quantised: Path, request: pytest.FixtureRequest
) -> None:
    ids = tokens(CFG, 24)
    peer = llama_cpp.Llama(str(quantised), n_ctx=64, n_batch=64, logits_all=True, verbose=False,
                           n_threads=1, type_k=0, type_v=0)  # fmt: skip
    peer.eval(ids)
    peer_logits = peer.scores[: len(ids)].copy()
    peer.close()
    held = {view.dtype.name for view in views(quantised).values() if len(view.shape) > 1}
    assert KINDS[request.node.callspec.params["quantised"]] <= held
    got, exact = logits(views(quantised), ids), logits(as_f32(views(quantised)), ids)
    ours, theirs = relative_error(got, exact), relative_error(peer_logits, exact)
    print(f"{quantised.stem}: {ours:.2e}, llama.cpp {theirs:.2e}")
    assert theirs < 0.1
    assert ours <= MORE_THAN_LLAMA_CPP * theirs + 1e-5
