"""GPTQ and AWQ checkpoints: the weights that are placed, and logits against float64."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from formats.family_writers import hf_numbers, write_family_hf
from formats.packed_models import (
    CFG,
    Arrays,
    PackedModel,
    awq_model,
    gptq_model,
    packed_bytes,
    write_packed,
)
from formats.packers import gptq_tensors, quantised
from formats.writers import hf_name
from models.families import FAMILIES, random_family
from models.runner import in_chunks, make, open_runner, relative_error, tokens
from reference.ref_model import forward as ref_forward
from safetensors.numpy import load_file

from rllama.cpu import CpuBackend
from rllama.dtypes import BF16
from rllama.loader import held_bytes, load, open_model
from rllama.making import unpacked
from rllama.packed import PackedView
from rllama.quant import dequantize, quantize
from rllama.tensor import TensorView

# As in test_llama.py: block types add the 8-bit activations, BF16 its own rounding.
BLOCK_BOUND, BF16_BOUND = 3e-2, 1.5e-2


def values_of(made: TensorView) -> np.ndarray:
    """What a made weight holds, its columns in the order of the inputs."""
    stored = dequantize(made.dtype.name, made.data, made.shape)
    if made.column_order is None:
        return stored
    values = np.empty_like(stored)
    values[:, made.column_order] = stored
    return values


def check_weights(folder: Path, model: PackedModel, becomes: str) -> None:
    backend, checkpoint = CpuBackend(n_threads=2), open_model(folder)
    n_packed = 0
    for name, view in checkpoint.tensors.items():
        if not isinstance(view, PackedView):
            continue
        n_packed += 1
        made = unpacked(view, backend)
        assert (view.dtype.name, made.dtype.name, made.n_bytes) == (becomes, becomes, view.n_bytes)
        want = model.weights[name]
        # The product is rounded once; in BF16 to 8 bits.
        precision = 2.0**-8 if becomes == "BF16" else 2.0**-23
        np.testing.assert_allclose(values_of(made), want, rtol=precision, atol=1e-12)
        np.testing.assert_allclose(view.to_f32(), want, rtol=2.0**-23, atol=1e-12)
        n = view.shape[0]
        part = unpacked(view.rows(n // 4, n // 2 + 3), backend)
        np.testing.assert_array_equal(values_of(part), values_of(made)[n // 4 : n // 2 + 3])
    assert n_packed == 7 * CFG.n_layers
    checkpoint.close()


def check_logits(folder: Path, model: PackedModel, bound: float) -> None:
    checkpoint = open_model(folder)
    ids = tokens(CFG, 24)
    got = make(CFG, checkpoint.tensors).run([(ids, 0, [0])])
    assert relative_error(got, ref_forward(CFG, model.weights, ids)) < bound
    checkpoint.close()


@pytest.mark.parametrize("act_order", [False, True], ids=["ordered", "act_order"])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_weights_and_logits_match(
    bits: int, group_size: int, act_order: bool, tmp_path: Path
) -> None:
    model = gptq_model(bits, group_size, act_order=act_order)
    folder = write_packed(tmp_path, model)
    check_weights(folder, model, "Q8_G" if bits == 8 else "Q4_G")
    check_logits(folder, model, BLOCK_BOUND)


@pytest.mark.parametrize("v2", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("sym", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_zero_conventions_match(bits: int, sym: bool, v2: bool, tmp_path: Path) -> None:
    model = gptq_model(bits, 64, sym=sym, v2=v2)
    check_weights(write_packed(tmp_path, model), model, "Q8_G" if bits == 8 else "Q4_G")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_zero_of_nought_is_stored_as_the_largest_and_read_as_nought(
    bits: int, tmp_path: Path
) -> None:
    """Weights that are never negative have the zero 0, stored as 2^bits - 1."""
    model = gptq_model(bits, 32)
    name = "model.layers.0.mlp.up_proj"
    words = model.tensors[f"{name}.qzeros"]
    model.tensors[f"{name}.qzeros"] = np.full_like(words, -1)
    scales = model.tensors[f"{name}.scales"].astype(np.float64)
    checkpoint = open_model(write_packed(tmp_path, model))
    view = checkpoint.tensors["layers.0.w_up"]
    made = unpacked(view, CpuBackend(n_threads=1))  # type: ignore[arg-type]
    values = values_of(made)
    assert values.min() == 0.0
    np.testing.assert_allclose(values.max() / scales.max(), 2**bits - 1, rtol=0.5)
    checkpoint.close()


@pytest.mark.parametrize("act_order", [False, True], ids=["ordered", "act_order"])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_gptq_groups_that_fill_no_blocks_become_bf16(
    bits: int, act_order: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = gptq_model(bits, 48, act_order=act_order)
    folder = write_packed(tmp_path, model)
    with caplog.at_level("WARNING", "rllama"):
        check_weights(folder, model, "BF16")
    assert "7 of 7 packed matrices fit no blocks of 32 inputs and run as BF16" in caplog.text
    check_logits(folder, model, BF16_BOUND)


def test_gptq_without_g_idx_counts_groups_in_order(tmp_path: Path) -> None:
    model = gptq_model(4, 64, with_g_idx=False)
    check_weights(write_packed(tmp_path, model), model, "Q4_G")


def test_gptq_scales_beyond_half_precision_stay_f32(tmp_path: Path) -> None:
    model = gptq_model(4, 64, scale_type="<f4")
    folder = write_packed(tmp_path, model)
    check_weights(folder, model, "Q8_F32")
    check_logits(folder, model, BLOCK_BOUND)


def test_gptq_f32_scales_that_half_precision_holds_are_narrowed(tmp_path: Path) -> None:
    model = gptq_model(4, 64)
    wide = {name: x.astype(np.float32) if name.endswith("scales") else x
            for name, x in model.tensors.items()}  # fmt: skip
    model = replace(model, tensors=wide)
    check_weights(write_packed(tmp_path, model), model, "Q4_G")


def test_gptq_bf16_scales_are_read(tmp_path: Path) -> None:
    model = gptq_model(4, 64)
    tensors, weights = dict(model.tensors), dict(model.weights)
    for name, x in model.tensors.items():
        if name.endswith("scales"):
            step = np.full(x.shape, 2.0**-7, dtype=np.float32)
            tensors[name] = quantize("BF16", step).view("<u2")
    name = "model.layers.0.mlp.up_proj"
    ratio = 2.0**-7 / model.tensors[f"{name}.scales"].astype(np.float64)
    weights["layers.0.w_up"] = weights["layers.0.w_up"] * np.repeat(ratio, 64, axis=0).T
    checkpoint = open_model(write_packed(tmp_path, replace(model, tensors=tensors)))
    view = checkpoint.tensors["layers.0.w_up"]
    assert isinstance(view, PackedView)
    assert view.dtype.name == "Q4_G"
    made = unpacked(view, CpuBackend(n_threads=1))
    np.testing.assert_allclose(values_of(made), weights["layers.0.w_up"], rtol=1e-6, atol=1e-12)
    checkpoint.close()


def test_gptq_settings_in_a_file_of_their_own(tmp_path: Path) -> None:
    model = gptq_model(4, 64)
    folder = write_packed(tmp_path, model, quantization_config=None)
    settings = {"bits": 4, "group_size": 64, "damp_percent": 0.01, "desc_act": False, "sym": True,
                "true_sequential": True, "model_file_base_name": "model"}  # fmt: skip
    (folder / "quantize_config.json").write_text(json.dumps(settings))
    check_weights(folder, model, "Q4_G")


def test_gptq_mixed_with_matrices_left_in_floats(tmp_path: Path) -> None:
    model = gptq_model(4, 64)
    name = "model.layers.0.self_attn.o_proj"
    tensors = {key: x for key, x in model.tensors.items() if not key.startswith(name)}
    tensors[f"{name}.weight"] = model.weights["layers.0.wo"].astype(np.float16)
    weights = model.weights | {"layers.0.wo": tensors[f"{name}.weight"].astype(np.float64)}
    model = replace(model, tensors=tensors, weights=weights)
    check_logits(write_packed(tmp_path, model), model, BLOCK_BOUND)


def test_gptq_head_may_be_packed_too(tmp_path: Path) -> None:
    model = gptq_model(4, 64)
    head = quantised(model.weights["lm_head"], 4, 64)
    tensors = {key: x for key, x in model.tensors.items() if key != "lm_head.weight"}
    model = replace(model, tensors=tensors | gptq_tensors("lm_head", head),
                    weights=model.weights | {"lm_head": head.values})  # fmt: skip
    check_logits(write_packed(tmp_path, model), model, BLOCK_BOUND)


def test_gptq_biases_of_nought_are_left_out(tmp_path: Path) -> None:
    """Some packers give every matrix a bias, be it needed or not."""
    model = gptq_model(4, 64)
    zeros = {f"model.layers.0.{name}.bias": np.zeros(n, dtype=np.float16)
             for name, n in (("self_attn.q_proj", 128), ("mlp.down_proj", 128))}  # fmt: skip
    check_logits(write_packed(tmp_path, replace(model, tensors=model.tensors | zeros)), model,
                 BLOCK_BOUND)  # fmt: skip


def test_gptq_biases_beside_packed_matrices_are_added(tmp_path: Path) -> None:
    model = gptq_model(4, 64)
    rng = np.random.default_rng(3)
    names = {"q_proj": ("bq", 128), "k_proj": ("bk", 64), "v_proj": ("bv", 64)}
    biases = {f"model.layers.0.self_attn.{name}.bias": rng.standard_normal(n).astype(np.float16)
              for name, (_, n) in names.items()}  # fmt: skip
    folder = write_packed(
        tmp_path, replace(model, tensors=model.tensors | biases), attention_bias=None,
        model_type="qwen2", architectures=["Qwen2ForCausalLM"],
    )  # fmt: skip
    checkpoint = open_model(folder)
    assert {f"layers.0.{ours}" for ours, _ in names.values()} <= set(checkpoint.tensors)
    assert "layers.0.bo" not in checkpoint.tensors
    checkpoint.close()


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
def test_awq_weights_and_logits_match(group_size: int, tmp_path: Path) -> None:
    model = awq_model(group_size)
    folder = write_packed(tmp_path, model)
    check_weights(folder, model, "Q4_G")
    check_logits(folder, model, BLOCK_BOUND)


def test_awq_groups_that_fill_no_blocks_become_bf16(tmp_path: Path) -> None:
    model = awq_model(16)
    folder = write_packed(tmp_path, model)
    check_weights(folder, model, "BF16")
    check_logits(folder, model, BF16_BOUND)


@pytest.mark.parametrize("model", [gptq_model(4, 64, act_order=True), awq_model(64)],
                         ids=["gptq", "awq"])  # fmt: skip
def test_packed_model_loads_and_counts_what_it_becomes(model: PackedModel, tmp_path: Path) -> None:
    loaded = load(write_packed(tmp_path, model), n_threads=1)
    try:
        placed = loaded.model.layers[0].wq
        assert placed.format_name == "Q4_G"
        assert loaded.plan.weights_bytes == held_bytes(loaded.checkpoint.tensors, f16=False)
        assert loaded.model.kv_dtype == "f16"
    finally:
        loaded.close()


@pytest.mark.parametrize(
    "model",
    [gptq_model(3, 64, act_order=True), gptq_model(8, 128), awq_model(64)],
    ids=["gptq3", "gptq8", "awq"],
)
def test_packed_logits_match_transformers_on_the_same_values(
    model: PackedModel, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = {key: value for key, value in model.config.items() if key != "quantization_config"}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).double()
    state = {hf_name(name): torch.from_numpy(np.ascontiguousarray(values))
             for name, values in model.weights.items()}  # fmt: skip
    theirs.load_state_dict(state)
    ids = tokens(CFG, 24)
    with torch.no_grad():
        want = theirs(torch.tensor([ids])).logits[0].numpy()
    checkpoint = open_model(write_packed(tmp_path, model))
    got = make(CFG, checkpoint.tensors).run([(ids, 0, [0])])
    assert relative_error(got, want) < BLOCK_BOUND
    checkpoint.close()


def test_packed_experts_in_activation_order_are_those_in_floats(tmp_path: Path) -> None:
    """Every expert is packed on its own, and has an order of its own."""
    family = FAMILIES["mixtral"]
    folder = write_family_hf(
        tmp_path / "floats", hf_numbers(family.config, **family.hf), random_family(family, 1)
    )
    path = folder / "model.safetensors"
    entries = load_file(path)
    packed: Arrays = {}
    for seed, name in enumerate(sorted(name for name in entries if ".experts." in name)):
        matrix = quantised(entries.pop(name), 4, 32, seed=seed, act_order=True)
        packed |= gptq_tensors(name.removesuffix(".weight"), matrix)
        entries[name] = matrix.values.astype(np.float32)
    path.write_bytes(packed_bytes(entries))
    other = tmp_path / "packed"
    numbers = json.loads((folder / "config.json").read_text())
    other.mkdir()
    scheme = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (other / "config.json").write_text(json.dumps({**numbers, "quantization_config": scheme}))
    plain = {name: x for name, x in entries.items() if ".experts." not in name}
    (other / "model.safetensors").write_bytes(packed_bytes(plain | packed))
    ids = tokens(family.config, 30)
    got, want = (in_chunks(open_runner(f, 256), ids, 30) for f in (other, folder))
    assert open_model(other).tensors["layers.0.experts.1.w_down"].dtype.name == "Q4_G"
    # A choice between experts that are about equal may fall the other way.
    assert np.median(np.abs(got - want).max(axis=1)) / np.abs(want).max() < BLOCK_BOUND


def test_packed_view_of_blocks_has_no_bf16(tmp_path: Path) -> None:
    checkpoint = open_model(write_packed(tmp_path, gptq_model(4, 64)))
    assert all(view.dtype is not BF16 for view in checkpoint.tensors.values())
    checkpoint.close()
