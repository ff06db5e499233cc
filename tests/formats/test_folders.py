"""What is said about paths and folders where there is no model to open, or a part of one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from torch_writers import write_hf_torch, write_meta
from writers import random_model, tiny_config, write_gguf, write_hf

from rllama.errors import ConfigError, FormatError, RllamaError, UnsupportedError
from rllama.formats import open_checkpoint, tokenizer_source

CFG = tiny_config()
MODEL = random_model(CFG, 4)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer.model"])
def test_pointer_in_a_safetensors_folder_is_said(name: str, tmp_path: Path) -> None:
    write_hf(tmp_path, CFG, MODEL)
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(FormatError, match=f"{name}.*a Git LFS pointer; fetch the file itself"):
        open_checkpoint(tmp_path)


def test_pointer_among_shards_is_said(tmp_path: Path) -> None:
    name = "model-00002-of-00002.safetensors"
    write_hf(tmp_path, CFG, MODEL, n_shards=2)
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(FormatError, match=f"{name}: a Git LFS pointer"):
        open_checkpoint(tmp_path)


def test_pointer_in_place_of_a_torch_file_is_said(tmp_path: Path) -> None:
    write_hf_torch(tmp_path / "hf", CFG, MODEL)
    (tmp_path / "hf" / "pytorch_model.bin").write_bytes(POINTER)
    write_meta(tmp_path / "meta", CFG, MODEL)
    (tmp_path / "meta" / "consolidated.00.pth").write_bytes(POINTER)
    for folder in ("hf", "meta"):
        with pytest.raises(FormatError, match="a Git LFS pointer"):
            open_checkpoint(tmp_path / folder)


def test_picture_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(PNG)
    with pytest.raises(FormatError, match=r"no tokenizer: a picture \(PNG\)"):
        tokenizer_source(str(tmp_path / "t"))


@pytest.mark.parametrize("has_config", [False, True])
@pytest.mark.parametrize("named", ["", "adapter_model.safetensors"])
def test_adapter_is_said_with_its_base_model(named: str, has_config: bool, tmp_path: Path) -> None:
    write_hf(tmp_path, CFG, MODEL)
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter_model.safetensors")
    if not has_config:
        (tmp_path / "config.json").unlink()
    base = {"base_model_name_or_path": "some/base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(base))
    with pytest.raises(UnsupportedError, match=r"a LoRA adapter.*base model \('some/base'\)"):
        open_checkpoint(tmp_path / named)


def test_model_with_an_adapter_beside_it_is_opened_by_its_name(tmp_path: Path) -> None:
    write_hf(tmp_path, CFG, MODEL)
    (tmp_path / "adapter_config.json").write_text("{")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    open_checkpoint(tmp_path / "model.safetensors").close()


@pytest.mark.parametrize("n_shards", [2, 4])
def test_missing_last_shard_of_meta_is_counted(n_shards: int, tmp_path: Path) -> None:
    cfg = tiny_config(n_heads=4, n_kv_heads=4)
    write_meta(tmp_path, cfg, random_model(cfg, 4), n_shards=n_shards)
    (tmp_path / f"consolidated.{n_shards - 1:02d}.pth").unlink()
    with pytest.raises(FormatError, match=rf"seem to be missing.*{n_shards - 1} of {n_shards} "):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shard_or_index_stands_for_the_whole_model(kind: str, tmp_path: Path) -> None:
    write = write_hf if kind == "safetensors" else write_hf_torch
    write(tmp_path, CFG, MODEL, n_shards=2)
    names = sorted(path.name for path in tmp_path.iterdir() if kind in path.name)
    assert len(names) == 3
    for name in names:
        checkpoint = open_checkpoint(tmp_path / name)
        assert set(checkpoint.tensors) == set(MODEL)
        checkpoint.close()


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [("m.gguf.part", bytes(8), r"m\.gguf\.part is here: an unfinished download"),
     ("model.onnx", b"\x08\x07\x12\x07pyt", "ONNX"), ("tf_model.h5", b"\x89HDF", "TensorFlow"),
     ("flax_model.msgpack", b"x", "Flax"), ("m.gguf", POINTER, r"m\.gguf is here: a Git LFS"),
     ("x.txt", b"x", r"llama2\.rs \.bin$")],
)  # fmt: skip
def test_folder_without_weights_tells_what_was_seen(
    name: str, data: bytes, text: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError, match=f"no weights in this folder.*{text}"):
        open_checkpoint(tmp_path)


def test_folder_of_models_names_them(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    write_gguf(tmp_path / "one" / "m.gguf", CFG, MODEL)
    with pytest.raises(FormatError, match="sub-folders have some: one; name one"):
        open_checkpoint(tmp_path)


def test_root_of_a_download_cache_names_its_snapshot(tmp_path: Path) -> None:
    root = tmp_path / "models--X--Y"
    write_hf(root / "snapshots" / "abc", CFG, MODEL)
    with pytest.raises(FormatError, match="name snapshots/abc in it"):
        open_checkpoint(root)
    shutil.rmtree(root / "snapshots" / "abc")
    with pytest.raises(FormatError, match="without a snapshot"):
        open_checkpoint(root)


@pytest.mark.parametrize("path", ["Some/Model-0.6B", "https://host/x/y", "hf://some/model"])
def test_name_of_a_model_elsewhere_is_no_path(path: str) -> None:
    with pytest.raises(ConfigError, match="no such file or folder, and nothing is downloaded here"):
        open_checkpoint(path)


def test_onnx_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"\x08\x08\x12\x07pytorch" + bytes(64))
    with pytest.raises(RllamaError, match="an ONNX model"):
        open_checkpoint(tmp_path / "m")
