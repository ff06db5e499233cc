"""Quantising while loading: what becomes what, how far the results move, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from formats.packed_models import gptq_model, write_packed
from formats.writers import random_model, tiny_config, write_gguf, write_hf
from numpy.typing import NDArray

from rllama import LLM, SamplingParams
from rllama.cpu import CpuBackend
from rllama.dtypes import F16, F32
from rllama.errors import ConfigError, FormatError, UnsupportedError
from rllama.loader import held_bytes, load, open_model
from rllama.making import quantized
from rllama.quant import dequantize, quantize
from rllama.recast import KINDS, read_recipes, recast
from rllama.recipe import Recipe
from rllama.tensor import JoinedView, MadeView, RecastView, TensorView

F64 = NDArray[np.float64]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, its weights as F32."""
    checkpoint = open_model(None)
    assert checkpoint.config is not None
    tensors = {name: dequantize(view.dtype.name, view.data, view.shape)  # type: ignore[union-attr]
               for name, view in checkpoint.tensors.items()}  # fmt: skip
    folder = write_hf(tmp_path_factory.mktemp("story"), checkpoint.config, tensors)
    checkpoint.close()
    return folder


@pytest.fixture(scope="module")
def text() -> list[int]:
    """Token ids of a story that the model tells itself."""
    with LLM(n_threads=2) as llm:
        return llm.generate("", SamplingParams(temperature=0, max_new_tokens=200)).token_ids


def log_probabilities(folder: Path, ids: list[int], kind: str | None) -> F64:
    with LLM(folder, quantize=kind, n_threads=2, kv_dtype="f16") as llm:
        wide = llm.logits(ids).astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


@pytest.fixture(scope="module")
def plain(story: Path, text: list[int]) -> F64:
    return log_probabilities(story, text, None)


# Mean Kullback-Leibler divergence from the float model, in nats, and perplexity on its own story
# as a share of the float model's: about twice as far off as was measured.
QUALITY = {
    "q8_0": (5e-5, 1.001),
    "q4_0": (4e-3, 1.01),
    "q4_k": (2e-3, 1.01),
    "int8": (5e-5, 1.001),
    "int4": (3e-3, 1.01),
    "8da4w": (5e-3, 1.01),
}


@pytest.mark.parametrize("kind", KINDS)
def test_quantize_moves_the_embedded_model_no_further_than_stated(
    story: Path, text: list[int], plain: F64, kind: str
) -> None:
    got = log_probabilities(story, text, kind)
    divergence = (np.exp(plain) * (plain - got)).sum(axis=1).mean()
    at = np.arange(len(text) - 1), text[1:]
    perplexity = np.exp(-got[at].mean()) / np.exp(-plain[at].mean())
    most, ratio = QUALITY[kind]
    assert 0 < divergence < most
    assert perplexity < ratio


TYPES = {
    "q8_0": ("Q8_0", "Q8_0", "Q8_0"),
    "q4_0": ("Q4_0", "Q8_0", "Q8_0"),
    "q4_k": ("Q4_K", "Q8_0", "Q8_0"),
    "int8": ("Q8_F32", "Q8_F32", "F16"),
    "int4": ("Q4_1", "Q4_1", "F16"),
    "8da4w": ("Q4_0", "Q4_0", "F16"),
    '{"linear:int8": {"bitwidth": 4, "groupsize": 32}}': ("Q4_0", "Q4_0", "F16"),
    '{"linear:int8": {"bitwidth": 8, "groupsize": 0, "node_type": "!output"}}': (
        "Q8_F32", "F16", "F16",
    ),
    '{"linear:int4": {"groupsize": 32}, "embedding": {"bitwidth": 4, "groupsize": 32}}': (
        "Q4_1", "Q4_1", "Q4_0",
    ),
    '{"linear:a8w4dq": {"groupsize": 64}, "embedding": {"bitwidth": 8, "groupsize": 0}, '
    '"precision": {"dtype": "fp32"}, "executor": {"accelerator": "cpu"}}': (
        "Q4_0", "Q4_0", "Q8_F32",
    ),
}  # fmt: skip

WIDE = tiny_config(dim=256, ffn_dim=512, n_heads=8, n_kv_heads=4, head_dim=32, n_layers=1)


@pytest.mark.parametrize("container", ["GGUF", "safetensors"])
@pytest.mark.parametrize("kind", TYPES)
def test_quantize_types_and_plan(kind: str, container: str, tmp_path: Path) -> None:
    model = random_model(WIDE, seed=1)
    path = (write_gguf(tmp_path / "m.gguf", WIDE, model, "F16") if container == "GGUF"
            else write_hf(tmp_path, WIDE, model, "F16"))  # fmt: skip
    loaded = load(path, quantize=kind, n_threads=1)
    try:
        parts = (loaded.model.layers[0].wq, loaded.model.lm_head, loaded.model.embed)
        assert tuple(part.format_name for part in parts) == TYPES[kind]
        assert loaded.plan.weights_bytes == held_bytes(loaded.checkpoint.tensors, f16=False)
        placed = loaded.model.layers[0].w_down
        assert placed.n_bytes == loaded.checkpoint.tensors["layers.0.w_down"].n_bytes
    finally:
        loaded.close()


def test_quantize_json_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mobile.json"
    path.write_text('{"embedding": {"bitwidth": 4, "groupsize": 32}}')
    assert read_recipes(str(path)).embed == Recipe("symmetric_4", 32)
    assert read_recipes(str(path)).linear is None
    assert read_recipes("Q4_K").linear == Recipe("q4_k")
    assert read_recipes('{"precision": {"dtype": "fp16"}}').f16


REFUSED = [
    ("q5_0", ConfigError, "neither a kind"),
    ("", ConfigError, "neither a kind"),
    ("{", ConfigError, "JSON"),
    ('{"linear:int8": 8}', ConfigError, "must be an object"),
    ('{"linear:int8": {"bits": 8}}', ConfigError, "'bits' is not known"),
    ('{"linear:int8": {"bitwidth": 6}}', UnsupportedError, "6 bits"),
    ('{"linear:int8": {"bitwidth": true}}', ConfigError, "bitwidth must be"),
    ('{"linear:int8": {"groupsize": 48}}', UnsupportedError, "no multiple of 32"),
    ('{"linear:int8": {"groupsize": -1}}', ConfigError, "groupsize must be"),
    ('{"linear:int8": {"node_type": "x"}}', ConfigError, "node_type"),
    ('{"linear:int4": {}}', ConfigError, "groupsize is missing"),
    ('{"linear:int4": {"groupsize": 16}}', ConfigError, "32, 64, 128 and 256"),
    ('{"linear:afpwx": {"bitwidth": 4}}', UnsupportedError, "linear:afpwx"),
    ('{"embedding:wx": {}}', UnsupportedError, "embedding:wx"),
    ('{"precision": {"dtype": "int3"}}', ConfigError, "dtype"),
    ('{"executor": {"accelerator": "mps"}}', UnsupportedError, "mps"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "error", "words"), REFUSED, ids=[kind for kind, _, _ in REFUSED])
def test_quantize_refuses_what_it_does_not_know(
    kind: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        read_recipes(kind)


@pytest.mark.parametrize("container", ["GGUF", "GPTQ", "embedded"])
def test_quantize_refuses_checkpoints_that_are_quantised(container: str, tmp_path: Path) -> None:
    path: Path | None = None
    if container == "GGUF":
        path = write_gguf(tmp_path / "m.gguf", WIDE, random_model(WIDE, seed=1), "Q8_0")
    elif container == "GPTQ":
        path = write_packed(tmp_path, gptq_model(4, 48))
    with pytest.raises(ConfigError, match="is quantised already"):
        load(path, quantize="q4_0", n_threads=1)


def test_quantize_says_which_rows_fit_no_blocks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = tiny_config(dim=64, ffn_dim=172, n_heads=4, n_kv_heads=2, head_dim=16, n_layers=1)
    path = write_gguf(tmp_path / "m.gguf", cfg, random_model(cfg, seed=1), "F32")
    with caplog.at_level("WARNING", "rllama"):
        loaded = load(path, quantize="q4_k", n_threads=1)
    assert loaded.model.layers[0].wq.format_name == "Q8_0"
    assert loaded.model.layers[0].w_down.format_name == "F32"
    assert "1 have rows that are no multiple of 32 and stay float, 6 have rows" in caplog.text
    loaded.close()


def test_quantize_values_that_no_block_holds_are_an_error(tmp_path: Path) -> None:
    model = random_model(WIDE, seed=1)
    model["layers.0.wk"][3, 5] = np.nan
    path = write_gguf(tmp_path / "m.gguf", WIDE, model, "F32")
    with pytest.raises(FormatError, match=r"attn_k.*not finite"):
        load(path, quantize="q4_0", n_threads=1)


def views(values: NDArray[np.float32], cuts: list[int], axis: int) -> JoinedView:
    pieces = np.split(values, cuts, axis=axis)
    return JoinedView(tuple(
        TensorView(memoryview(quantize("F16", piece).tobytes()), F16, piece.shape, f"piece {i}")
        for i, piece in enumerate(pieces)), axis)  # fmt: skip


@pytest.mark.parametrize(("axis", "cuts"), [(0, [3, 200]), (1, [100, 131]), (1, [256])])
@pytest.mark.parametrize("kind", ["q4_0", "q4_k", "asymmetric_4"])
def test_quantize_pieces_as_one_matrix(kind: str, axis: int, cuts: list[int]) -> None:
    """Pieces of columns need not be whole blocks; the rows are."""
    values = np.random.default_rng(2).standard_normal((520, 512)).astype(np.float16)
    backend, recipe = CpuBackend(n_threads=2), Recipe(kind, 128)  # type: ignore[arg-type]
    whole = TensorView(memoryview(values.tobytes()), F16, values.shape, "whole")
    want = quantized(RecastView(whole, recipe), backend)
    joined = RecastView(views(values.astype(np.float32), cuts, axis), recipe)
    got = quantized(joined, backend)
    assert (got.dtype, got.shape, bytes(got.data)) == (want.dtype, want.shape, bytes(want.data))
    part = quantized(joined.rows(100, 300), backend)
    row = want.n_bytes // 520
    assert bytes(part.data) == bytes(want.data)[100 * row : 300 * row]


def test_quantize_tensors_that_are_made_first() -> None:
    values = np.random.default_rng(3).standard_normal((4, 64)).astype(np.float32)
    made = MadeView(F32, values.shape, "made", lambda: values.view(np.uint8).copy())
    got = quantized(RecastView(made, Recipe("q8_0")), CpuBackend(n_threads=1))
    assert bytes(got.data) == quantize("Q8_0", values).tobytes()


def test_quantize_leaves_routers_and_vectors() -> None:
    def view(*shape: int) -> TensorView:
        return TensorView(memoryview(bytes(F32.n_bytes(shape))), F32, shape, "test")

    tensors: Mapping[str, TensorView] = {
        "layers.0.router": view(8, 64), "layers.0.ffn_norm": view(64), "layers.0.wq": view(64, 64),
    }  # fmt: skip
    got = recast(tensors, KINDS["q8_0"], "test")
    assert [name for name, v in got.items() if isinstance(v, RecastView)] == ["layers.0.wq"]


def test_quantize_settings_are_plain_json() -> None:
    """The keys of torchchat's own profiles are understood."""
    mobile = {"embedding": {"bitwidth": 4, "groupsize": 32}, "linear:a8w4dq": {"groupsize": 256}}
    recipes = read_recipes(json.dumps(mobile))
    assert (recipes.embed, recipes.linear) == (
        Recipe("symmetric_4", 32),
        Recipe("symmetric_4", 256),
    )
