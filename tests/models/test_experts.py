"""Mixtures of experts: every way that files hold them; results that the batch cannot change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats.expert_writers import (
    gguf_experts_of_old,
    gpt_oss_experts,
    hf_stacks,
    in_turns,
    mxfp4,
    stacked,
)
from formats.family_writers import hf_numbers, write_family_gguf, write_family_hf
from formats.writers import F32, U32, Tensors, safetensors_bytes
from models.families import FAMILIES, random_family
from models.hf_families import CASES, Case, hf_logits, random_hf_model, save_hf
from models.runner import in_chunks, make, open_runner, tokens, views_of
from reference.ref_model import forward as ref_forward

from rllama.config import EngineConfig
from rllama.errors import ConfigError, FormatError, RllamaError, UnsupportedError
from rllama.loader import open_model
from rllama.memory import Available, plan_memory
from rllama.quant import dequantize, quantize

IDS = tokens(FAMILIES["mixtral"].config, 100)


def run(path: Path, size: int = 100) -> np.ndarray:
    return in_chunks(open_runner(path, 256), IDS, size)


def write_packed(folder: Path, tensors: Tensors, family: str = "gpt_oss") -> Path:
    """gpt-oss as its own files are: experts in MXFP4."""
    numbers = hf_numbers(FAMILIES[family].config, **FAMILIES[family].hf,
                         quantization_config={"quant_method": "mxfp4"})  # fmt: skip
    write_family_hf(folder, numbers, tensors, experts={})
    entries = {
        name: (kind, x.shape, x.tobytes())
        for name, (kind, x) in gpt_oss_experts(tensors, packed=True).items()
    }
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model-2.safetensors").write_bytes(safetensors_bytes(entries))
    weight_map = dict.fromkeys(entries, "model-2.safetensors")
    names = open_names(folder / "model-1.safetensors")
    weight_map |= dict.fromkeys(names, "model-1.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def open_names(path: Path) -> list[str]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return list(json.loads(data[8 : 8 + length]))


def as_mxfp4(tensors: Tensors) -> Tensors:
    """Matrices of experts as MXFP4 holds them."""
    return {
        name: dequantize("MXFP4", quantize("MXFP4", x), x.shape)
        if ".experts." in name and x.ndim == 2 else x
        for name, x in tensors.items()
    }  # fmt: skip


def typical_error(got: np.ndarray, want: np.ndarray) -> float:
    """Of the middle token: where activations have 8 bits, some tokens take other experts."""
    return float(np.median(np.abs(got - want).max(axis=1)) / np.abs(want).max())


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_mixture_alone_and_in_a_crowd_is_the_same(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    folder = write_family_hf(
        tmp_path / "hf", hf_numbers(family.config, **family.hf), random_family(family, 1)
    )
    others = [tokens(family.config, n, seed=n) for n in (1, 17, 60)]
    alone = [run_one(folder, ids) for ids in others]
    runner = open_runner(folder, 256)
    together = runner.run([(ids, 0, [3 * i, 3 * i + 1, 3 * i + 2])
                           for i, ids in enumerate(others)])  # fmt: skip
    np.testing.assert_array_equal(together, np.concatenate(alone))


def run_one(folder: Path, ids: list[int]) -> np.ndarray:
    return in_chunks(open_runner(folder, 256), ids, 13)


def test_stacks_of_hf_files_are_what_their_experts_are(tmp_path: Path) -> None:
    family = FAMILIES["qwen3_moe"]
    numbers, model = hf_numbers(family.config, **family.hf), random_family(family, 1)
    apart = write_family_hf(tmp_path / "apart", numbers, model)
    stacks = write_family_hf(tmp_path / "stacks", numbers, model, experts=hf_stacks(model))
    np.testing.assert_array_equal(run(stacks), run(apart))


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0", "MXFP4"])
def test_experts_of_old_gguf_files_are_those_of_stacks(kind: str, tmp_path: Path) -> None:
    family = FAMILIES["mixtral"]
    common: dict[str, Any] = {
        "arch": "llama", "interleaved": True, "vectors": {}, "kind": kind,
        "keys": {"rope.dimension_count": (U32, 8), **family.gguf},
    }  # fmt: skip
    model = random_family(family, 1)
    new = write_family_gguf(tmp_path / "new.gguf", family.config, model, **common)
    old = write_family_gguf(tmp_path / "old.gguf", family.config, model, **common,
                            experts=gguf_experts_of_old)  # fmt: skip
    np.testing.assert_array_equal(run(old), run(new))


def test_packed_experts_are_those_in_blocks(tmp_path: Path) -> None:
    family = FAMILIES["gpt_oss"]
    model = random_family(family, 1)
    packed = run(write_packed(tmp_path / "hf", model))
    experts = {name for name in model if ".experts." in name and ".w_" in name}
    views = views_of({name: x for name, x in model.items() if name not in experts}, "F32")
    views |= views_of({name: model[name] for name in experts}, "MXFP4")
    cfg = replace(family.config, max_seq_len=256)
    np.testing.assert_array_equal(in_chunks(make(cfg, views), IDS, 100), packed)
    wide = {name: x.astype(np.float64) for name, x in as_mxfp4(model).items()}
    want = ref_forward(family.config, wide, IDS, max_seq_len=256)
    assert typical_error(packed, want) < 0.03
    checkpoint = open_model(tmp_path / "hf")
    for name in experts:
        made = checkpoint.tensors[name]
        got = dequantize("MXFP4", made.made().data, made.shape)  # type: ignore[union-attr]
        np.testing.assert_array_equal(got, as_mxfp4(model)[name])


def test_packed_experts_are_unpacked_as_transformers_does() -> None:
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("transformers.integrations.mxfp4")
    x = stacked(random_family(FAMILIES["gpt_oss"], 1))[0, "w_gate"]
    blocks, scales = (torch.from_numpy(part) for part in mxfp4(x))
    got = module.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    want = dequantize("MXFP4", quantize("MXFP4", x), x.shape)
    np.testing.assert_array_equal(got.numpy().swapaxes(1, 2), want)


def test_packed_gpt_oss_is_that_of_transformers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from safetensors.torch import load_file, save_file

    sizes = {"hidden_size": 64, "intermediate_size": 96}
    model = random_hf_model(Case("GptOssConfig", {**CASES["gpt_oss"].numbers, **sizes}), seed=3)
    packed: dict[str, Any] = {}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("gate_up_proj", "down_proj")):
                x = weight.numpy().swapaxes(1, 2).copy()
                blocks, scales = mxfp4(x)
                packed |= {name + "_blocks": torch.from_numpy(blocks),
                           name + "_scales": torch.from_numpy(scales)}  # fmt: skip
                values = dequantize("MXFP4", quantize("MXFP4", x), x.shape)
                weight.copy_(torch.from_numpy(values).transpose(1, 2))
    folder = save_hf(model, tmp_path / "hf")
    kept = {name: x for name, x in load_file(folder / "model.safetensors").items()
            if not name.endswith(("gate_up_proj", "down_proj"))}  # fmt: skip
    save_file(kept | packed, folder / "model.safetensors")
    ids = [int(i) for i in np.random.default_rng(4).integers(3, 131, 300)]
    got = in_chunks(open_runner(folder, 300), ids, 64)
    assert typical_error(got, hf_logits(model, ids)) < 0.03


def test_gate_and_up_take_turns() -> None:
    gate, up = np.zeros((1, 2, 3)), np.ones((1, 2, 3))
    assert in_turns(gate, up)[0, :, 0].tolist() == [0, 1, 0, 1]


def broken(name: str, tmp_path: Path, change: Any) -> Path:
    """A folder of stacks of which one is changed."""
    family = FAMILIES[name]
    model = random_family(family, 1)
    stacks = hf_stacks(model)
    key = "model.layers.1.mlp.experts.gate_up_proj"
    stacks[key] = np.ascontiguousarray(change(stacks[key]))
    numbers = hf_numbers(family.config, **family.hf)
    return write_family_hf(tmp_path / "hf", numbers, model, experts=stacks)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda x: x[0], FormatError, "no stack of experts"),
        (lambda x: x[:, 1:], FormatError, "no even number"),
        (lambda x: x[:-1], ConfigError, r"experts\.6\.w_gate\) is missing"),
        (lambda x: x[:, :-2], ConfigError, r"has the shape \[23, 32\], not \[24, 32\]"),
        (lambda x: np.zeros((1025, 2, 1), np.float32), UnsupportedError, "1025 experts"),
    ],
    ids=["two axes", "odd", "too few", "narrow", "too many"],
)
def test_stacks_that_do_not_fit_are_refused(
    change: Any, error: type[RllamaError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        open_model(broken("qwen3_moe", tmp_path, change))


@pytest.mark.parametrize(
    ("numbers", "error", "words"),
    [
        ({"mlp_only_layers": [1]}, UnsupportedError, "mlp_only_layers"),
        ({"decoder_sparse_step": 2}, UnsupportedError, "decoder_sparse_step"),
        ({"num_experts_per_tok": 8}, ConfigError, "8 of 7 experts"),
        ({"num_experts_per_tok": 0}, ConfigError, "num_experts_per_tok"),
        ({"num_experts": 8}, ConfigError, "router has the shape"),
        ({"num_experts": 1025}, ConfigError, "num_experts"),
        ({"swiglu_limit": 5.0}, UnsupportedError, "swiglu_limit 5.0"),
    ],
    ids=str,
)
def test_numbers_of_experts_that_do_not_fit_are_refused(
    numbers: dict[str, object], error: type[RllamaError], words: str, tmp_path: Path
) -> None:
    family = FAMILIES["qwen3_moe"]
    config = hf_numbers(family.config, **{**family.hf, **numbers})
    with pytest.raises(error, match=words):
        open_model(write_family_hf(tmp_path / "hf", config, random_family(family, 1)))


@pytest.mark.parametrize(
    ("suffix", "change", "words"),
    [
        ("gate_up_proj_scales", lambda x: x[:, 1:], "scales"),
        ("gate_up_proj_scales", None, "scales missing"),
        ("gate_up_proj_blocks", None, "scales without blocks"),
    ],
    ids=["other scales", "no scales", "no blocks"],
)
def test_packed_experts_that_do_not_fit_are_refused(
    suffix: str, change: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = gpt_oss_experts

    def changed(tensors: Tensors, *, packed: bool) -> dict[str, tuple[str, np.ndarray]]:
        found = dict(real(tensors, packed=packed))
        key = f"model.layers.0.mlp.experts.{suffix}"
        kind, x = found.pop(key)
        return found if change is None else found | {key: (kind, np.ascontiguousarray(change(x)))}

    monkeypatch.setitem(globals(), "gpt_oss_experts", changed)
    folder = write_packed(tmp_path / "hf", random_family(FAMILIES["gpt_oss"], 1))
    with pytest.raises(FormatError, match=words):
        open_model(folder)


def test_packed_scale_that_is_no_number_is_refused_when_placed(tmp_path: Path) -> None:
    folder = write_packed(tmp_path / "hf", random_family(FAMILIES["gpt_oss"], 1))
    path = folder / "model-2.safetensors"
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + length])["model.layers.0.mlp.experts.down_proj_scales"]
    data[8 + length + entry["data_offsets"][0]] = 255
    path.write_bytes(data)
    with pytest.raises(FormatError, match="a scale of expert 0 is not a number"):
        run(folder)


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        ({"expert_shared_count": (U32, 1)}, UnsupportedError, "expert_shared_count"),
        ({"leading_dense_block_count": (U32, 1)}, UnsupportedError, "leading_dense_block_count"),
        ({"expert_gating_func": (U32, 2)}, UnsupportedError, "not by softmax"),
        ({"expert_weights_scale": (F32, 2.5)}, UnsupportedError, "expert_weights_scale"),
        ({"expert_used_count": (U32, 8)}, ConfigError, "8 of 7 experts"),
        ({"expert_used_count": (U32, 0)}, ConfigError, "is 0 of 7 experts"),
        ({"expert_count": (U32, 1025)}, ConfigError, "expert_count"),
        ({"expert_count": (U32, 8)}, ConfigError, "router has the shape"),
        ({"expert_feed_forward_length": (U32, 32)}, ConfigError, "has the shape"),
    ],
    ids=lambda x: ",".join(x) if isinstance(x, dict) else None,
)
def test_gguf_keys_of_experts_that_do_not_fit_are_refused(
    keys: dict[str, tuple[int, object]], error: type[RllamaError], words: str, tmp_path: Path
) -> None:
    family = FAMILIES["qwen3_moe"]
    path = write_family_gguf(
        tmp_path / "m.gguf", family.config, random_family(family, 1), arch="qwen3moe",
        interleaved=False, vectors={},
        keys={"rope.dimension_count": (U32, 8), **family.gguf, **keys},
    )  # fmt: skip
    with pytest.raises(error, match=words):
        open_model(path)


def test_memory_plan_counts_the_scratch_of_experts() -> None:
    dense = FAMILIES["qwen3"].config
    mixed = replace(dense, n_experts=8, n_experts_used=2, expert_ffn_dim=1000)
    plans = [
        plan_memory(cfg, EngineConfig(max_batch_tokens=300), weights_bytes=0, kv_dtype="f16",
                    available=Available(1 << 30, "test"))
        for cfg in (dense, mixed)
    ]  # fmt: skip
    assert plans[1].work_bytes - plans[0].work_bytes >= 300 * 4 * (2 * dense.dim + 2 * 1000)
