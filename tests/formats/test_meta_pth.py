"""Meta checkpoints: shards of every kind merged without a copy, numbers, names, tokenizers."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from torch_writers import (
    dictionary,
    meta_name,
    meta_shard,
    ordered_dict,
    params_json,
    pickle_of,
    storage,
    tensor,
    text,
    torch_bytes,
    torch_parts,
    torch_zip,
    whole,
    write_meta,
)
from writers import (
    llama2c_tokenizer_bytes,
    random_model,
    small_vocab,
    tiny_config,
    write_llama2c,
)

from rllama.config import RopeScaling
from rllama.errors import ConfigError, FormatError, UnsafeFileError, UnsupportedError
from rllama.formats import open_checkpoint
from rllama.formats.checkpoint import Checkpoint
from rllama.loader import open_model
from rllama.quant import dequantize, quantize
from rllama.tensor import JoinedView

CFG = tiny_config(dim=64, ffn_dim=128, head_dim=4, n_heads=16, n_kv_heads=8, vocab_size=288)
MODEL = random_model(CFG, seed=8)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    return dequantize(dtype, quantize(dtype, values), values.shape)


def assert_holds(checkpoint: Checkpoint, dtype: str) -> None:
    assert set(checkpoint.tensors) == set(MODEL)
    for name, want in MODEL.items():
        got = checkpoint.tensors[name]
        assert got.shape == want.shape
        np.testing.assert_array_equal(got.to_f32(), rounded(want, dtype), err_msg=name)


@pytest.mark.parametrize("unzipped", [False, True])
@pytest.mark.parametrize("n_shards", [1, 2, 4, 16])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_meta_shards_make_the_whole(
    tmp_path: Path, dtype: str, n_shards: int, unzipped: bool
) -> None:
    write_meta(tmp_path, CFG, MODEL, dtype, n_shards, unzipped=unzipped)
    checkpoint = open_model(tmp_path)
    assert_holds(checkpoint, dtype)
    joined = checkpoint.tensors["layers.0.wq"]
    if n_shards > 1:
        assert isinstance(joined, JoinedView)
        assert (joined.axis, len(joined.parts)) == (0, n_shards)
        keys = checkpoint.tensors["layers.0.wk"]
        assert isinstance(keys, JoinedView)
        assert len(keys.parts) == min(n_shards, CFG.n_kv_heads)
    checkpoint.close()


@pytest.mark.parametrize("n_shards", [2, 8])
def test_meta_embedding_in_rows_is_recognised_by_its_width(tmp_path: Path, n_shards: int) -> None:
    write_meta(tmp_path, CFG, MODEL, "F32", n_shards, embed_rows=True)
    checkpoint = open_model(tmp_path)
    embed = checkpoint.tensors["embed"]
    assert isinstance(embed, JoinedView)
    assert embed.axis == 0
    assert_holds(checkpoint, "F32")
    checkpoint.close()


@pytest.mark.parametrize("name", ["consolidated.00.pth", "consolidated.01.pth"])
def test_meta_one_shard_stands_for_all(tmp_path: Path, name: str) -> None:
    write_meta(tmp_path, CFG, MODEL, "F16", 2)
    checkpoint = open_model(tmp_path / name)
    assert_holds(checkpoint, "F16")
    checkpoint.close()


def test_meta_unzipped_folder_by_itself(tmp_path: Path) -> None:
    write_meta(tmp_path, CFG, MODEL, "F16", 1, unzipped=True)
    checkpoint = open_model(tmp_path / "consolidated.00")
    assert_holds(checkpoint, "F16")
    checkpoint.close()


@pytest.mark.parametrize("folder", ["consolidated", "anything", "."])
def test_meta_unzipped_folder_of_any_name(tmp_path: Path, folder: str) -> None:
    write_meta(tmp_path, CFG, MODEL, "F16", 1, unzipped=True)
    if folder == ".":
        for path in (tmp_path / "consolidated.00").iterdir():
            path.rename(tmp_path / path.name)
    else:
        (tmp_path / "consolidated.00").rename(tmp_path / folder)
    checkpoint = open_model(tmp_path)
    assert_holds(checkpoint, "F16")
    checkpoint.close()


def test_meta_folder_found_relative_to_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_meta(tmp_path / "7B", CFG, MODEL, "F16", 2)
    vocab = small_vocab(CFG.vocab_size)
    (tmp_path / "tokenizer.model").write_bytes(llama2c_tokenizer_bytes(vocab))
    monkeypatch.chdir(tmp_path)
    checkpoint = open_model("7B")
    assert checkpoint.tokenizer is not None
    assert os.path.realpath(checkpoint.tokenizer.path or "") == str(tmp_path / "tokenizer.model")
    checkpoint.close()


@pytest.mark.parametrize("name", ["tokenizer.model", "tok288.bin", "tokenizer.bin"])
@pytest.mark.parametrize("where", [".", ".."])
def test_meta_tokenizer_beside_or_one_folder_up(tmp_path: Path, where: str, name: str) -> None:
    folder = write_meta(tmp_path / "7B", CFG, MODEL)
    vocab = llama2c_tokenizer_bytes(small_vocab(CFG.vocab_size))
    (folder / where / name).resolve().write_bytes(vocab)
    checkpoint = open_model(folder)
    assert checkpoint.tokenizer is not None
    assert len(checkpoint.tokenizer.pieces) == CFG.vocab_size
    checkpoint.close()


def test_meta_tokenizer_of_another_model_one_folder_up_is_left_alone(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "7B", CFG, MODEL)
    (tmp_path / "tokenizer.bin").write_bytes(llama2c_tokenizer_bytes(small_vocab(400)))
    checkpoint = open_model(folder)
    assert checkpoint.tokenizer is None
    checkpoint.close()


# ---- numbers ----


def config_of(folder: Path, **params: object) -> object:
    write_meta(folder, CFG, MODEL, params=params_json(CFG, **params))
    checkpoint = open_model(folder)
    checkpoint.close()
    return checkpoint.config


def test_meta_numbers_are_those_of_params_and_shapes(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    for name in ("dim", "ffn_dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size",
                 "norm_eps", "rope_theta", "rope_style", "tied_head"):  # fmt: skip
        assert getattr(config, name) == getattr(CFG, name), name


@pytest.mark.parametrize(
    ("params", "context"),
    [
        ({"norm_eps": 1e-6}, 2048),
        ({"norm_eps": 1e-5}, 4096),
        ({"rope_theta": 1000000}, 16384),
        ({"rope_theta": 500000.0}, 8192),
        ({"rope_theta": 500000.0, "use_scaled_rope": True}, 131072),
        ({"max_seq_len": 300}, 300),
    ],
)
def test_meta_context_follows_from_the_family(
    tmp_path: Path, params: dict[str, object], context: int
) -> None:
    assert config_of(tmp_path, **params).max_seq_len == context  # type: ignore[attr-defined]


def test_meta_first_llama_is_known_by_its_tables(tmp_path: Path) -> None:
    tables = {"layers.0.attention.inner_attention.rope.freqs": np.ones(2, np.float32)}
    part = meta_shard(CFG, MODEL, 0, 1) | tables
    (tmp_path / "consolidated.00.pth").write_bytes(torch_bytes(part))
    (tmp_path / "params.json").write_text(json.dumps(params_json(CFG)))
    checkpoint = open_model(tmp_path)
    assert checkpoint.config is not None
    assert checkpoint.config.max_seq_len == 2048
    assert checkpoint.extras == ()
    checkpoint.close()


@pytest.mark.parametrize(("params", "factor"), [({}, 8.0), ({"rope_scaling_factor": 32.0}, 32.0)])
def test_meta_scaled_rope_has_its_numbers(
    tmp_path: Path, params: dict[str, object], factor: float
) -> None:
    config = config_of(tmp_path, use_scaled_rope=True, **params)
    want = RopeScaling("llama3", factor, 8192, low_freq_factor=1.0, high_freq_factor=4.0)
    assert config.rope_scaling == want  # type: ignore[attr-defined]


def test_meta_scaled_rope_of_the_small_models_has_factor_32(tmp_path: Path) -> None:
    from rllama.formats.fields import Fields
    from rllama.formats.hparams_meta import meta_config

    for dim, n_layers, factor in ((2048, 16, 32.0), (3072, 28, 32.0), (4096, 32, 8.0)):
        params = Fields({"dim": dim, "n_layers": n_layers, "n_heads": 32, "rope_theta": 500000.0,
                         "use_scaled_rope": True}, "params.json")  # fmt: skip
        config = meta_config(
            params, vocab_size=128256, ffn_dim=8192, tied_head=True, is_first_llama=False, name=""
        )
        assert config.rope_scaling is not None
        assert config.rope_scaling.factor == factor


@pytest.mark.parametrize("named", [False, True])
def test_meta_numbers_under_names_of_config_json(tmp_path: Path, named: bool) -> None:
    write_meta(tmp_path, CFG, MODEL)
    (tmp_path / "params.json").unlink()
    numbers = {"hidden_size": CFG.dim, "num_hidden_layers": CFG.n_layers, "rms_norm_eps": 1e-6,
               "num_attention_heads": CFG.n_heads, "num_key_value_heads": CFG.n_kv_heads,
               "vocab_size": CFG.vocab_size, "max_position_embeddings": 99}  # fmt: skip
    path = tmp_path / ("other.json" if named else "config.json")
    path.write_text(json.dumps(numbers))
    checkpoint = open_model(tmp_path, param_path=path if named else None)
    assert_holds(checkpoint, "F16")
    assert checkpoint.config is not None
    assert (checkpoint.config.norm_eps, checkpoint.config.max_seq_len) == (1e-6, 99)
    assert checkpoint.config.rope_style == "interleaved"
    checkpoint.close()


def test_meta_without_numbers_says_what_to_do(tmp_path: Path) -> None:
    write_meta(tmp_path, CFG, MODEL)
    (tmp_path / "params.json").unlink()
    with pytest.raises(ConfigError, match=r"need a params\.json beside them, .*--param-path"):
        open_model(tmp_path)


def test_meta_unknown_numbers_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        config_of(tmp_path, dropout=0.1, xyzzy=3)
    assert "params.json: ignored: xyzzy" in caplog.text


# ---- one file ----


def trained(arguments: bytes, prefix: str = "_orig_mod.") -> bytes:
    """A checkpoint as llama2.c's training script saves it; the head is the embedding."""
    names = {f"{prefix}{meta_name(name)}": x for name, x in MODEL.items() if name != "lm_head"}
    entries, storages = torch_parts(names, "F32")
    entries[f"{prefix}output.weight"] = entries[f"{prefix}tok_embeddings.weight"]
    body = {
        "model": dictionary(entries), "optimizer": b"}", "model_args": arguments,
        "iter_num": whole(7), "best_val_loss": tensor(storage("FloatStorage", "0", 288 * 64), ()),
    }  # fmt: skip
    return torch_zip(pickle_of(dictionary(body)), storages).to_bytes()


def test_training_checkpoint_of_llama2c(tmp_path: Path) -> None:
    numbers = {"dim": CFG.dim, "n_layers": CFG.n_layers, "n_heads": CFG.n_heads, "max_seq_len": 77,
               "n_kv_heads": CFG.n_kv_heads, "vocab_size": CFG.vocab_size}  # fmt: skip
    arguments = dictionary({key: whole(value) for key, value in numbers.items()})
    (tmp_path / "ckpt.pt").write_bytes(trained(arguments))
    for path in (tmp_path, tmp_path / "ckpt.pt"):
        checkpoint = open_model(path)
        assert checkpoint.config is not None
        assert checkpoint.config.tied_head
        assert checkpoint.config.max_seq_len == 77
        for name, view in checkpoint.tensors.items():
            np.testing.assert_array_equal(view.to_f32(), MODEL[name], err_msg=name)
        assert "lm_head" not in checkpoint.tensors
        checkpoint.close()


@pytest.mark.parametrize("name", ["model.pth", "weights.bin", "x"])
def test_plain_state_dictionary_beside_params(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(torch_bytes(meta_shard(CFG, MODEL, 0, 1), "BF16"))
    (tmp_path / "params.json").write_text(json.dumps(params_json(CFG)))
    for path in (tmp_path, tmp_path / name):
        checkpoint = open_model(path)
        assert_holds(checkpoint, "BF16")
        checkpoint.close()


def test_meta_files_that_are_missing_or_twice(tmp_path: Path) -> None:
    write_meta(tmp_path, CFG, MODEL, n_shards=4)
    (tmp_path / "consolidated.01.pth").unlink()
    with pytest.raises(FormatError, match=r"consolidated\.01 is missing; there are 00, 02, 03"):
        open_model(tmp_path)
    write_meta(tmp_path, CFG, MODEL, n_shards=2)
    write_meta(tmp_path, CFG, MODEL, unzipped=True)
    with pytest.raises(ConfigError, match=r"a shard is here twice .*keep one"):
        open_model(tmp_path)


def test_meta_beside_another_model_is_ambiguous(tmp_path: Path) -> None:
    write_meta(tmp_path, CFG, MODEL)
    (tmp_path / "other.pth").write_bytes(torch_bytes(meta_shard(CFG, MODEL, 0, 1)))
    checkpoint = open_checkpoint(tmp_path)  # the shards are the model of this folder
    checkpoint.close()
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="several models in this folder"):
        open_checkpoint(tmp_path)


def test_old_torch_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(pickle_of(ordered_dict()) + pickle_of(text("x")))
    with pytest.raises(UnsafeFileError, match=r"bare pickle, .*torch\.save it again"):
        open_model(tmp_path / "model.pth")


def test_meta_numbers_that_are_not_computed_are_refused(tmp_path: Path) -> None:
    for key, value in (("moe", {"num_experts": 8}), ("sliding_window", 4096)):
        with pytest.raises(UnsupportedError, match=f"{key}: .* not supported"):
            config_of(tmp_path, **{key: value})


@pytest.mark.parametrize("dim", [640, 896, 1152, 1408])
def test_llama2c_files_that_begin_like_a_pickle_are_none(tmp_path: Path, dim: int) -> None:
    cfg = tiny_config(dim=dim, head_dim=dim // 4, ffn_dim=32, n_layers=1, vocab_size=32)
    path = write_llama2c(tmp_path / "model.bin", cfg, random_model(cfg, seed=1))
    assert path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    for there in (path, tmp_path):
        checkpoint = open_model(there)
        assert checkpoint.format_name == "llama2.c"
        checkpoint.close()
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FormatError, match=r"begins like a llama2\.c file"):
        open_model(path)
