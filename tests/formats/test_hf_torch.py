"""pytorch_model.bin: Hugging Face folders whose weights are torch files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch_writers import (
    dictionary,
    pickle_of,
    storage,
    tensor,
    torch_bytes,
    torch_parts,
    torch_zip,
    whole,
    write_hf_torch,
)
from writers import hf_config, hf_tensors, random_model, tiny_config, to_half_pairing, write_hf

from rllama.errors import ConfigError, FormatError, UnsafeFileError
from rllama.loader import open_model
from rllama.quant import dequantize, quantize

CFG = tiny_config()
MODEL = random_model(CFG, seed=15)


def assert_holds(path: Path, dtype: str, model: dict[str, np.ndarray] | None = None) -> None:
    checkpoint = open_model(path)
    try:
        for name, want in (MODEL if model is None else model).items():
            want = dequantize(dtype, quantize(dtype, want), want.shape)
            if name.endswith((".wq", ".wk")):
                heads = CFG.n_heads if name.endswith("q") else CFG.n_kv_heads
                want = to_half_pairing(want, heads)
            got = checkpoint.tensors[name]
            np.testing.assert_array_equal(got.to_f32(), want, err_msg=name)
    finally:
        checkpoint.close()


@pytest.mark.parametrize("n_shards", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_torch_weights_in_a_hugging_face_folder(tmp_path: Path, dtype: str, n_shards: int) -> None:
    write_hf_torch(tmp_path, CFG, MODEL, dtype, n_shards)
    assert_holds(tmp_path, dtype)


def test_torch_file_named_directly(tmp_path: Path) -> None:
    assert_holds(write_hf_torch(tmp_path, CFG, MODEL) / "pytorch_model.bin", "F16")


def test_training_states_beside_the_weights_do_not_matter(tmp_path: Path) -> None:
    write_hf_torch(tmp_path, CFG, MODEL)
    (tmp_path / "training_args.bin").write_bytes(
        torch_zip(pickle_of(b"cos\nsystem\n"), {}).to_bytes()
    )
    step = torch_bytes({"exp_avg": MODEL["final_norm"]})
    (tmp_path / "optimizer.pt").write_bytes(step)
    (tmp_path / "scheduler.pt").write_bytes(torch_zip(pickle_of(whole(3)), {}).to_bytes())
    assert_holds(tmp_path, "F16")


def test_safetensors_are_preferred_where_both_are_complete(tmp_path: Path) -> None:
    write_hf_torch(tmp_path, CFG, random_model(CFG, seed=16), "F32", 2)
    write_hf(tmp_path, CFG, MODEL, "F32", 2)
    assert_holds(tmp_path, "F32")


def test_torch_files_are_taken_where_safetensors_are_incomplete(tmp_path: Path) -> None:
    write_hf(tmp_path, CFG, random_model(CFG, seed=16), "F32", 2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    write_hf_torch(tmp_path, CFG, MODEL, "F32", 2)
    assert_holds(tmp_path, "F32")


def test_torch_index_with_a_missing_file_is_refused(tmp_path: Path) -> None:
    write_hf_torch(tmp_path, CFG, MODEL, "F32", 2)
    (tmp_path / "pytorch_model-00001-of-00002.bin").unlink()
    with pytest.raises(FormatError, match="which is missing"):
        open_model(tmp_path)


def test_torch_head_that_is_the_embedding_is_read_once(tmp_path: Path) -> None:
    cfg = tiny_config(tied_head=True)
    model = random_model(cfg, seed=15)
    entries, storages = torch_parts(hf_tensors(cfg, model))
    entries["lm_head.weight"] = entries["model.embed_tokens.weight"]
    write_hf_torch(tmp_path, cfg, model)
    data = torch_zip(pickle_of(dictionary(entries)), storages).to_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(data)
    assert_holds(tmp_path, "F16", model)


def test_torch_weights_that_lie_turned_are_copied(tmp_path: Path) -> None:
    write_hf_torch(tmp_path, CFG, MODEL)
    theirs = hf_tensors(CFG, MODEL)
    entries, storages = torch_parts(theirs)
    name = "model.layers.0.mlp.up_proj.weight"
    key = str(list(theirs).index(name))
    rows, cols = theirs[name].shape
    storages[key] = quantize("F16", np.ascontiguousarray(theirs[name].T)).tobytes()
    entries[name] = tensor(storage("HalfStorage", key, rows * cols), (rows, cols), (1, rows))
    data = torch_zip(pickle_of(dictionary(entries)), storages, method=8).to_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(data)
    assert_holds(tmp_path, "F16")


def test_torch_weights_that_want_to_run_are_refused(tmp_path: Path) -> None:
    write_hf_torch(tmp_path, CFG, MODEL)
    data = torch_zip(pickle_of(b"cos\nsystem\n)R"), {}).to_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(UnsafeFileError, match=r"'os\.system'"):
        open_model(tmp_path)


def test_torch_files_without_config_are_no_hugging_face_folder(tmp_path: Path) -> None:
    write_hf_torch(tmp_path, CFG, MODEL)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FormatError, match=r"pytorch_model\*\.bin \(with config\.json\)"):
        open_model(tmp_path)
    with pytest.raises(ConfigError, match=r"need a config\.json beside them"):
        open_model(tmp_path / "pytorch_model.bin")


def test_torch_files_of_transformers_itself(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    write_hf_torch(tmp_path, CFG, MODEL)
    assert hf_config(CFG)["model_type"] == "llama"
    state = {name: torch.from_numpy(x) for name, x in hf_tensors(CFG, MODEL).items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_holds(tmp_path, "F32")
