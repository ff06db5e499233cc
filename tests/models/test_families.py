"""The kin of Llama: logits against the float64 reference, from both kinds of files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from formats.family_writers import hf_numbers, write_family_gguf, write_family_hf
from formats.writers import Tensors
from models.families import FAMILIES, FUSED, Family, random_family
from models.runner import in_chunks, open_runner, relative_error, tokens
from reference.ref_model import forward as ref_forward

from rllama.config import ModelConfig
from rllama.errors import ConfigError
from rllama.loader import open_model

BOUND = 2e-5  # of the largest logit; f32 sums over a few layers
IN_GGUF = [name for name in FAMILIES if name != "llama_dynamic"]  # which no converter writes
N_TOKENS = 150  # past every window and every original context


def write_hf(folder: Path, family: Family, seed: int = 1) -> Path:
    numbers = hf_numbers(family.config, **family.hf)
    return write_family_hf(folder, numbers, random_family(family, seed))


def write_gguf(
    path: Path, family: Family, tensors: Tensors | None = None, kind: str = "F32"
) -> Path:
    return write_family_gguf(
        path,
        family.config,
        tensors or random_family(family, 1),
        arch=family.gguf_arch or family.arch,
        interleaved=family.interleaved,
        keys={"rope.dimension_count": (4, family.config.head_dim), **family.gguf},
        vectors=family.vectors,
        kind=kind,
    )


def config_of(path: Path) -> ModelConfig:
    checkpoint = open_model(path)
    assert checkpoint.config is not None
    checkpoint.close()
    return checkpoint.config


def reference(family: Family, ids: list[int], seed: int = 1) -> np.ndarray:
    wide = {name: x.astype(np.float64) for name, x in random_family(family, seed).items()}
    return ref_forward(family.config, wide, ids, max_seq_len=256)


@pytest.mark.parametrize("name", FAMILIES)
def test_family_config_json_is_read_as_its_numbers(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    got = config_of(write_hf(tmp_path / "hf", family))
    want = replace(family.config, name="hf")
    assert replace(got, embed_scale=1, attn_scale=1) == replace(want, embed_scale=1, attn_scale=1)
    assert got.embed_scale == pytest.approx(want.embed_scale, rel=1e-7)
    assert got.attn_scale == pytest.approx(want.attn_scale)


@pytest.mark.parametrize("name", IN_GGUF)
def test_family_gguf_is_read_as_its_numbers(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    got = config_of(write_gguf(tmp_path / "m.gguf", family))
    want = replace(
        family.config, norm_offset=0.0, name="tiny",
        arch=family.arch if family.arch == "mixtral" else family.gguf_arch or family.arch,
        rope_style="interleaved" if family.interleaved else family.config.rope_style,
        add_bos=got.add_bos, bos_token_id=got.bos_token_id, eos_token_ids=got.eos_token_ids,
        **{field: getattr(got, field) for field in ("rope_scaling",) if field in family.differs},
    )  # fmt: skip
    for field in ("norm_eps", "embed_scale", "attn_scale", "rope_theta", "local_rope_theta"):
        value = getattr(want, field)
        if value is not None:  # numbers are F32 in the file
            assert getattr(got, field) == pytest.approx(value, rel=1e-6), field
            want = replace(want, **{field: getattr(got, field)})
    assert got == want


@pytest.mark.parametrize("name", FAMILIES)
def test_family_of_hf_files_matches_reference(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    ids = tokens(family.config, N_TOKENS)[: family.config.max_seq_len]
    folder = write_hf(tmp_path / "hf", family)
    whole = in_chunks(open_runner(folder, 256), ids, N_TOKENS)
    assert relative_error(whole, reference(family, ids)) < BOUND
    for size in (64, 7):
        pieces = in_chunks(open_runner(folder, 256), ids, size)
        np.testing.assert_array_equal(pieces, whole, err_msg=f"in pieces of {size}")


@pytest.mark.parametrize("name", IN_GGUF)
def test_family_of_gguf_matches_reference(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    ids = tokens(family.config, N_TOKENS)[: family.config.max_seq_len]
    got = in_chunks(open_runner(write_gguf(tmp_path / "m.gguf", family), 256), ids, 64)
    assert relative_error(got, reference(family, ids)) < BOUND


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_family_of_matrices_in_one_is_that_of_matrices_apart(kind: str, tmp_path: Path) -> None:
    family = FAMILIES["phi3"]
    cfg, model = family.config, random_family(family, 1)
    apart = {name: x for name, x in model.items() if not name.endswith(FUSED)}
    q_rows, k_rows = cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
    for i in range(cfg.n_layers):
        qkv = np.split(model[f"layers.{i}.wqkv"], (q_rows, q_rows + k_rows))
        both = np.split(model[f"layers.{i}.w_gate_up"], 2)
        names = ("wq", "wk", "wv", "w_gate", "w_up")
        apart |= {f"layers.{i}.{n}": x for n, x in zip(names, (*qkv, *both), strict=True)}
    ids = tokens(cfg, 50)
    one, other = (
        in_chunks(open_runner(write_gguf(tmp_path / name, family, tensors, kind), 256), ids, 50)
        for name, tensors in (("one", model), ("other", apart))
    )
    np.testing.assert_array_equal(one, other)


def _older(name: str) -> str:
    return f"language_model.{name}"


def _newer(name: str) -> str:
    return name.replace("model.", "model.language_model.", 1)


@pytest.mark.parametrize("rename", [_older, _newer])
def test_text_part_of_a_model_that_also_sees_is_a_model(
    rename: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family = FAMILIES["gemma3"]
    numbers = {
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": hf_numbers(family.config, **family.hf), "vision_config": {"hidden_size": 8},
    }  # fmt: skip
    model = random_family(family, 1)
    seeing = {"vision_tower.norm.bias": np.ones(8, np.float32)}
    folder = write_family_hf(tmp_path / "hf", numbers, model, rename=rename, extras=seeing)
    ids = tokens(family.config, 50)
    with caplog.at_level("INFO", "rllama"):
        got = in_chunks(open_runner(folder, 256), ids, 50)
    assert "1 unknown tensors ignored: vision_tower.norm.bias" in caplog.text
    assert relative_error(got, reference(family, ids)) < BOUND


def test_family_without_its_biases_is_refused(tmp_path: Path) -> None:
    family = FAMILIES["qwen2"]
    model = {n: x for n, x in random_family(family, 1).items() if not n.endswith(".bk")}
    folder = write_family_hf(tmp_path / "hf", hf_numbers(family.config, **family.hf), model)
    with pytest.raises(ConfigError, match=r"k_proj\.bias' \(layers\.0\.bk\) is missing"):
        open_model(folder)
