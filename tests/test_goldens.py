"""A small trained model in every container gives the texts and logits of another implementation."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from formats.torch_writers import write_hf_torch, write_meta
from formats.writers import write_hf, write_llama2c

from rllama import LLM, SamplingParams
from rllama.loader import open_model

N_POSITIONS = 200  # after BOS, as the golden texts were made
FILES = {
    "llama2c-v0": ("stories260K.bin", None),
    "llama2c-v1": ("stories260K.v1.bin", None),
    "gguf": ("stories260K.f32.gguf", None),
    "hugging-face": ("hf", "tok512.bin"),
}


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("container", FILES)
def test_greedy_texts_and_logits_match_at_every_level(
    stories: Path, isa: str, container: str, n_threads: int
) -> None:
    name, tokenizer = FILES[container]
    texts = json.loads((stories / "greedy_texts.json").read_text())
    golden = np.load(stories / "golden.npz")
    tokenizer_path = stories / tokenizer if tokenizer else None
    with LLM(stories / name, tokenizer_path=tokenizer_path, isa=isa, n_threads=n_threads) as llm:
        for prompt, want in texts.items():
            n_new = N_POSITIONS + 1 - len(llm.tokenize(prompt, add_bos=True))
            params = SamplingParams(temperature=0, max_new_tokens=n_new)
            got = prompt + llm.generate(prompt, params).text
            assert got.removesuffix("\n") == want.removesuffix("\n"), (isa, prompt)
        logits = llm.logits(golden["tokens"].tolist())
        assert np.abs(logits - golden["logits"]).max() < 1e-3, isa


def half_texts(path: Path, texts: dict[str, str], **options: object) -> dict[str, list[int]]:
    """The greedy ids after each prompt, the model held as F16."""
    with LLM(path, f16=True, **options) as llm:  # type: ignore[arg-type]
        params = SamplingParams(temperature=0, max_new_tokens=150, ignore_eos=True)
        return {prompt: llm.generate(prompt, params).token_ids for prompt in texts}


def test_meta_checkpoints_give_the_ids_of_every_other_f16_container(
    stories: Path, tmp_path: Path
) -> None:
    texts = json.loads((stories / "greedy_texts.json").read_text())
    want = half_texts(stories / "stories260K.bin", texts)
    tokenizer = {"tokenizer_path": stories / "tok512.bin"}
    assert half_texts(stories / "hf", texts, **tokenizer) == want
    assert half_texts(stories / "stories260K.f32.gguf", texts) == want
    for name in ("meta", "meta-2shards"):
        assert half_texts(stories / name, texts) == want, name
        for archive in (stories / name).glob("*.pth"):
            zipfile.ZipFile(archive).extractall(tmp_path / name / archive.stem)
        shutil.copy(stories / name / "params.json", tmp_path / name)
        assert half_texts(tmp_path / name, texts, **tokenizer) == want, f"{name} unzipped"


@pytest.mark.parametrize(
    ("dtype", "n_shards"), [("F32", 1), ("F32", 4), ("BF16", 2), ("F16", 4), ("F16", 8)]
)
def test_meta_shards_written_from_the_trained_model_give_its_ids(
    stories: Path, tmp_path: Path, dtype: str, n_shards: int
) -> None:
    texts = json.loads((stories / "greedy_texts.json").read_text())
    checkpoint = open_model(stories / "stories260K.bin")
    assert checkpoint.config is not None
    weights = {name: view.to_f32() for name, view in checkpoint.tensors.items()}
    cfg = checkpoint.config
    checkpoint.close()
    weights["lm_head"] = weights["embed"]
    if n_shards > 4:  # 172 rows fit 4 shards; the width of the feed-forward may be padded freely
        weights = padded(weights)
    write_meta(tmp_path / "one", cfg, weights, dtype, 1)
    write_meta(tmp_path / "many", cfg, weights, dtype, n_shards)
    tokenizer = {"tokenizer_path": stories / "tok512.bin"}
    want = half_texts(tmp_path / "one", texts, **tokenizer)
    assert half_texts(tmp_path / "many", texts, **tokenizer) == want
    if dtype != "BF16":  # a narrower type tells another story
        assert want == half_texts(stories / "stories260K.bin", texts)


def test_hugging_face_weights_in_other_files_give_the_same_ids(
    stories: Path, tmp_path: Path
) -> None:
    texts = json.loads((stories / "greedy_texts.json").read_text())
    tokenizer = {"tokenizer_path": stories / "tok512.bin"}
    want = half_texts(stories / "stories260K.bin", texts)
    checkpoint = open_model(stories / "stories260K.bin")
    assert checkpoint.config is not None
    cfg = checkpoint.config
    weights = {name: view.to_f32() for name, view in checkpoint.tensors.items()}
    checkpoint.close()
    for name in ("one", "many"):
        write_hf_torch(tmp_path / name, cfg, weights, "F32", 1 if name == "one" else 3)
        assert half_texts(tmp_path / name, texts, **tokenizer) == want, name
    write_hf(tmp_path / "safetensors", cfg, weights)
    assert half_texts(tmp_path / "safetensors", texts, **tokenizer) == want


def padded(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same model with 4 more units in every feed-forward, which do nothing."""
    wider = dict(weights)
    for name, values in weights.items():
        if name.endswith((".w_gate", ".w_up")):
            wider[name] = np.pad(values, ((0, 4), (0, 0)))
        elif name.endswith(".w_down"):
            wider[name] = np.pad(values, ((0, 0), (0, 4)))
    return wider


@pytest.mark.parametrize(("group_size", "bound"), [(4, 0.0), (32, 0.03)])
def test_llama2c_groups_give_the_logits_of_their_own_values(
    stories: Path, tmp_path: Path, group_size: int, bound: float
) -> None:
    """Groups of 4 run as F32, those of 32 in blocks, whose kernels round activations to 8 bits."""
    tokens = np.load(stories / "golden.npz")["tokens"].tolist()
    checkpoint = open_model(stories / "stories260K.bin")
    assert checkpoint.config is not None
    cfg, weights = checkpoint.config, {n: v.to_f32() for n, v in checkpoint.tensors.items()}
    checkpoint.close()
    path = write_llama2c(tmp_path / "q8", cfg, weights, version=2, group_size=group_size)
    for name, values in weights.items():
        if values.ndim == 2:
            groups = values.reshape(-1, group_size)
            scales = np.abs(groups).max(axis=1, keepdims=True) / np.float32(127)
            weights[name] = (np.rint(groups / scales) * scales).reshape(values.shape)
    plain = write_llama2c(tmp_path / "plain", cfg, weights, version=1)
    with LLM(path) as packed, LLM(plain) as whole:
        got, want = packed.logits(tokens), whole.logits(tokens)
    assert np.abs(got - want).max() <= bound * np.abs(want).max()
