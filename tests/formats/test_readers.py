"""Each reader on small files that `writers` made, and every container against the others."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from writers import (
    U32,
    U64,
    Vocab,
    llama2c_tokenizer_bytes,
    random_model,
    raw_gguf,
    small_vocab,
    tiny_config,
    to_half_pairing,
    write_gguf,
    write_hf,
    write_llama2c,
)

from rllama.errors import ConfigError, FormatError, MemoryPlanError, UnsupportedError
from rllama.formats import open_checkpoint, open_gguf_vocabulary
from rllama.formats.checkpoint import Checkpoint
from rllama.loader import open_model
from rllama.memory import Available
from rllama.quant import dequantize, quantize

CFG = tiny_config(dim=64, ffn_dim=96, head_dim=16)
MODEL = random_model(CFG, seed=3)
VOCAB = small_vocab(CFG.vocab_size)


def values(checkpoint: Checkpoint, name: str) -> np.ndarray:
    view = checkpoint.tensors[name]
    return dequantize(view.dtype.name, bytes(view.data), view.shape)


def assert_holds(checkpoint: Checkpoint, model: dict[str, np.ndarray], *, half: bool) -> None:
    assert set(checkpoint.tensors) == set(model)
    for name, want in model.items():
        if half and name.endswith((".wq", ".wk")):
            want = to_half_pairing(want, CFG.n_heads if name.endswith("q") else CFG.n_kv_heads)
        np.testing.assert_array_equal(values(checkpoint, name), want, err_msg=name)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_gguf_gives_every_tensor_type_to_the_byte(tmp_path: Path, kind: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", CFG, MODEL, kind, VOCAB)
    checkpoint = open_checkpoint(path)
    for name, x in MODEL.items():
        view = checkpoint.tensors[name]
        assert view.dtype.name == (kind if x.ndim == 2 else "F32")
        assert bytes(view.data) == quantize(view.dtype.name, x).tobytes()
    checkpoint.close()


def test_gguf_config_and_vocabulary(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m", CFG, MODEL, "F32", VOCAB))
    config, source = checkpoint.config, checkpoint.tokenizer
    assert config is not None
    assert source is not None
    for name in ("dim", "ffn_dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size",
                 "max_seq_len", "norm_eps", "rope_theta", "bos_token_id", "eos_token_ids",
                 "rope_style", "tied_head"):  # fmt: skip
        assert getattr(config, name) == getattr(CFG, name), name
    assert config.add_bos is True
    assert source.kind == "vocab"
    assert source.pieces == tuple(VOCAB.pieces)
    assert source.scores == tuple(VOCAB.scores)
    assert source.types == tuple(VOCAB.types)
    assert (source.bos_token_id, source.eos_token_id, source.unk_token_id) == (1, 2, 0)
    checkpoint.close()


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_gguf_versions_and_alignments(tmp_path: Path, version: int, alignment: int) -> None:
    raw = raw_gguf(CFG, MODEL)
    raw.version, raw.alignment = version, alignment
    raw.kvs["general.alignment"] = (U32, alignment)
    (tmp_path / "m").write_bytes(raw.to_bytes())
    checkpoint = open_checkpoint(tmp_path / "m")
    assert_holds(checkpoint, MODEL, half=False)
    checkpoint.close()


def test_gguf_without_output_has_a_tied_head(tmp_path: Path) -> None:
    tied = {name: x for name, x in MODEL.items() if name != "lm_head"}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m", CFG, tied))
    assert checkpoint.config is not None
    assert checkpoint.config.tied_head
    assert "lm_head" not in checkpoint.tensors
    checkpoint.close()


def test_gguf_accepts_wide_integers_and_missing_kv_heads(tmp_path: Path) -> None:
    cfg = tiny_config(n_kv_heads=4)
    raw = raw_gguf(cfg, random_model(cfg, 1))
    del raw.kvs["llama.attention.head_count_kv"]
    raw.kvs["llama.embedding_length"] = (U64, cfg.dim)
    (tmp_path / "m").write_bytes(raw.to_bytes())
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.config is not None
    assert checkpoint.config.n_kv_heads == 4
    checkpoint.close()


def test_gguf_padded_vocabulary_is_legal(tmp_path: Path) -> None:
    vocab = small_vocab(CFG.vocab_size - 5)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m", CFG, MODEL, "F32", vocab))
    assert checkpoint.config is not None
    assert checkpoint.tokenizer is not None
    assert checkpoint.config.vocab_size == CFG.vocab_size
    assert len(checkpoint.tokenizer.pieces) == CFG.vocab_size - 5
    checkpoint.close()


def test_gguf_with_another_tokenizer_serves_ids(tmp_path: Path) -> None:
    raw = raw_gguf(CFG, MODEL, "F32", VOCAB)
    raw.kvs["tokenizer.ggml.model"] = (8, "bert")
    (tmp_path / "m").write_bytes(raw.to_bytes())
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.tokenizer is None
    assert "kind 'bert'" in checkpoint.no_tokenizer
    assert checkpoint.metadata["tokenizer_kind"] == "bert"
    assert checkpoint.config is not None
    assert checkpoint.config.add_bos is None
    checkpoint.close()
    with pytest.raises(UnsupportedError, match="bert"):
        open_gguf_vocabulary(str(tmp_path / "m"))


def test_gguf_vocabulary_alone_is_a_tokenizer_but_no_model(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "v.gguf", CFG, {}, "F32", VOCAB)
    assert open_gguf_vocabulary(str(path)).pieces == tuple(VOCAB.pieces)
    with pytest.raises(FormatError, match="vocabulary without weights"):
        open_checkpoint(path)
    listing = open_checkpoint(path, lenient=True)
    assert listing.config is None
    assert listing.tokenizer is not None
    assert listing.metadata["tokenizer.ggml.tokens"] == f"array of {CFG.vocab_size} string"
    json.dumps(listing.metadata)
    listing.close()


def test_gguf_listing_shows_tensors_of_unsupported_types(tmp_path: Path) -> None:
    raw = raw_gguf(CFG, MODEL, "F32", VOCAB)
    raw.tensors[1].type_id = 15
    (tmp_path / "m").write_bytes(raw.to_bytes())
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_norm\.weight.*Q8_K"):
        open_checkpoint(tmp_path / "m")
    listing = open_checkpoint(tmp_path / "m", lenient=True)
    assert [(extra.name, extra.type_name) for extra in listing.extras] == [
        ("blk.0.attn_norm.weight", "Q8_K")
    ]
    assert "embed" in listing.tensors
    listing.close()


@pytest.mark.parametrize("n_shards", [1, 3])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_hf_folder_gives_every_tensor(tmp_path: Path, dtype: str, n_shards: int) -> None:
    folder = write_hf(tmp_path / "hf", CFG, MODEL, dtype, n_shards)
    checkpoint = open_checkpoint(folder)
    rounded = {n: dequantize(dtype, quantize(dtype, x), x.shape) for n, x in MODEL.items()}
    assert_holds(checkpoint, rounded, half=True)
    assert checkpoint.config is not None
    assert checkpoint.config.rope_style == "half"
    assert checkpoint.config.eos_token_ids == (2,)
    assert checkpoint.tokenizer is None
    checkpoint.close()


def test_hf_single_file_opens_with_its_config_beside(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "hf", CFG, MODEL)
    (folder / "model.safetensors").rename(folder / "other name")
    checkpoint = open_checkpoint(folder / "other name")
    assert_holds(checkpoint, MODEL, half=True)
    checkpoint.close()


def test_hf_param_path_overrides_the_config(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "hf", CFG, MODEL)
    numbers = json.loads((folder / "config.json").read_text())
    numbers["rope_theta"] = 500000.0
    (tmp_path / "mine.json").write_text(json.dumps(numbers))
    checkpoint = open_checkpoint(folder, param_path=tmp_path / "mine.json")
    assert checkpoint.config is not None
    assert checkpoint.config.rope_theta == 500000.0
    checkpoint.close()


def test_hf_rope_theta_inside_rope_parameters(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "hf", CFG, MODEL)
    numbers = json.loads((folder / "config.json").read_text())
    del numbers["rope_theta"]
    numbers["rope_parameters"] = {"rope_type": "default", "rope_theta": 250000}
    (folder / "config.json").write_text(json.dumps(numbers))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config is not None
    assert checkpoint.config.rope_theta == 250000.0
    checkpoint.close()


@pytest.mark.parametrize(("do_sample", "want"), [(False, 0.0), (True, 0.6), (None, 0.6)])
def test_hf_generation_config_without_sampling_is_greedy(
    tmp_path: Path, do_sample: bool | None, want: float
) -> None:
    folder = write_hf(tmp_path / "hf", CFG, MODEL)
    generation = {"temperature": 0.6, "repetition_penalty": 1.1, "do_sample": do_sample}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    checkpoint = open_checkpoint(folder)
    checkpoint.close()
    assert checkpoint.config is not None
    assert checkpoint.config.generation.temperature == want
    assert checkpoint.config.generation.repetition_penalty == 1.1


def test_hf_generation_config_gives_defaults_and_more_eos_ids(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "hf", CFG, MODEL)
    generation = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 7], "max_length": 4096}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config is not None
    assert checkpoint.config.generation.temperature == 0.6
    assert checkpoint.config.generation.top_p == 0.9
    assert checkpoint.config.generation.top_k is None
    assert checkpoint.config.eos_token_ids == (2, 7)
    checkpoint.close()


def test_hf_stored_but_tied_head_is_the_embedding(tmp_path: Path) -> None:
    tied = tiny_config(tied_head=True)
    model = random_model(tied, 5)
    folder = write_hf(tmp_path / "hf", tied, {**model, "lm_head": model["embed"]})
    checkpoint = open_model(folder)
    assert "lm_head" not in checkpoint.tensors
    assert len(checkpoint.tensors) == len(model)
    checkpoint.close()


def test_hf_tokenizer_beside_is_found_by_content(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "hf", CFG, MODEL)
    nothing = open_checkpoint(folder)
    assert nothing.tokenizer is None
    assert "tok288.bin, tokenizer.json, tokenizer.model" in nothing.no_tokenizer
    (folder / "tokenizer.bin").write_bytes(llama2c_tokenizer_bytes(VOCAB))
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    source = open_checkpoint(folder).tokenizer
    assert source is not None
    assert (source.kind, len(source.pieces), source.add_bos) == ("vocab", 288, False)
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02")
    source = open_checkpoint(folder).tokenizer
    assert source is not None
    assert source.kind == "spm"
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    source = open_checkpoint(folder).tokenizer
    assert source is not None
    assert source.kind == "tiktoken"
    (folder / "tokenizer.json").write_text('{"model": {}}')
    source = open_checkpoint(folder).tokenizer
    assert source is not None
    assert (source.kind, source.settings) == ("json", {"add_bos_token": False})
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match="no tokenizer: it has no model"):
        open_checkpoint(folder)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("tied", [False, True], ids=["own_head", "tied"])
def test_llama2c_float_versions(tmp_path: Path, version: int, tied: bool) -> None:
    model = {name: x for name, x in MODEL.items() if not (tied and name == "lm_head")}
    checkpoint = open_checkpoint(write_llama2c(tmp_path / "m.bin", CFG, model, version))
    config = checkpoint.config
    assert config is not None
    assert (config.tied_head, config.rope_style, config.eos_token_ids) == (
        tied, "interleaved", (1, 2),
    )  # fmt: skip
    assert_holds(checkpoint, model, half=False)
    checkpoint.close()


@pytest.mark.parametrize(
    ("group_size", "kinds"), [(64, {"Q8_F32"}), (32, {"Q8_F32"}), (16, {"F32"})]
)
def test_llama2c_groups_are_reblocked_or_made_floats(
    tmp_path: Path, group_size: int, kinds: set[str]
) -> None:
    checkpoint = open_checkpoint(write_llama2c(tmp_path / "m.bin", CFG, MODEL, 2, group_size))
    matrices = {n: v for n, v in checkpoint.tensors.items() if len(v.shape) == 2}
    assert {view.dtype.name for view in matrices.values()} == kinds
    for name in matrices:
        groups = MODEL[name].reshape(-1, group_size)
        scales = np.abs(groups).max(axis=1, keepdims=True) / np.float32(127)
        want = (np.rint(groups / scales) * scales).astype(np.float32).reshape(MODEL[name].shape)
        np.testing.assert_array_equal(values(checkpoint, name), want, err_msg=name)
    checkpoint.close()


def test_llama2c_groups_that_straddle_rows_are_floats(tmp_path: Path) -> None:
    cfg = tiny_config(dim=64, ffn_dim=172, head_dim=16)
    model = random_model(cfg, 2)
    checkpoint = open_checkpoint(write_llama2c(tmp_path / "m.bin", cfg, model, 2, 64))
    assert checkpoint.tensors["layers.0.w_down"].dtype.name == "F32"
    assert checkpoint.tensors["layers.0.w_up"].dtype.name == "Q8_F32"
    assert np.abs(values(checkpoint, "layers.1.w_down") - model["layers.1.w_down"]).max() < 0.01
    checkpoint.close()


def test_llama2c_groups_that_do_not_fit_are_refused_before_copying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_llama2c(tmp_path / "m.bin", CFG, MODEL, 2)
    with monkeypatch.context() as patch:
        little = Available(100_000, "a test")
        patch.setattr("rllama.formats.llama2c.available_memory", lambda: little)
        with pytest.raises(MemoryPlanError, match=r"0\.00 GB are there \(a test\)"):
            open_checkpoint(path)
    open_checkpoint(path).close()


def test_llama2c_takes_the_vocabulary_of_its_size(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.bin").write_bytes(llama2c_tokenizer_bytes(small_vocab(300)))
    (tmp_path / "tok288.bin").write_bytes(llama2c_tokenizer_bytes(VOCAB))
    path = write_llama2c(tmp_path / "m.bin", CFG, MODEL)
    source = open_checkpoint(path).tokenizer
    assert source is not None
    assert source.path == str(tmp_path / "tok288.bin")
    (tmp_path / "tok288.bin").unlink()
    with pytest.raises(FormatError, match=r"300 tokens.*288"):
        open_checkpoint(path)


def test_tokenizer_path_wins_and_must_fit(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m", CFG, MODEL, "F32", VOCAB)
    other = tmp_path / "other"
    other.write_bytes(llama2c_tokenizer_bytes(VOCAB))
    source = open_checkpoint(path, tokenizer_path=other).tokenizer
    assert source is not None
    assert source.path == str(other)
    other.write_bytes(llama2c_tokenizer_bytes(small_vocab(289)))
    with pytest.raises(ConfigError, match="289 tokens, but the model has only 288"):
        open_checkpoint(path, tokenizer_path=other)


@pytest.mark.parametrize("kind", ["gguf", "llama2c"])
def test_param_path_is_refused_where_the_file_has_its_numbers(tmp_path: Path, kind: str) -> None:
    write = write_gguf if kind == "gguf" else write_llama2c
    path = write(tmp_path / "m", CFG, MODEL)
    with pytest.raises(ConfigError, match="leave out param_path"):
        open_checkpoint(path, param_path=tmp_path / "params.json")


def test_folder_with_one_model_file_opens_it(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m", CFG, MODEL)
    (tmp_path / "notes.txt").write_text("nothing to see")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format_name == "GGUF"
    checkpoint.close()


def test_views_outlive_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m", CFG, MODEL))
    view = checkpoint.tensors["embed"]
    checkpoint.close()
    checkpoint.close()
    np.testing.assert_array_equal(view.to_f32(), MODEL["embed"])


def test_opening_reads_no_weights(tmp_path: Path) -> None:
    """A checkpoint whose weights are a hole in the file opens without filling it."""
    raw = raw_gguf(CFG, MODEL)
    data = raw.to_bytes()
    path = tmp_path / "m"
    path.write_bytes(data[: len(data) - sum(len(t.data) for t in raw.tensors)])
    os.truncate(path, len(data))
    blocks = path.stat().st_blocks
    open_checkpoint(path).close()
    assert path.stat().st_blocks == blocks


def test_origin_names_file_tensor_and_offset(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m", CFG, MODEL))
    origin = checkpoint.tensors["layers.1.wq"].origin
    assert origin.startswith(f"{tmp_path / 'm'}:blk.1.attn_q.weight@0x")
    checkpoint.close()


@pytest.mark.parametrize("n_pieces", [32_000, 128_000])
def test_gguf_with_a_large_vocabulary_opens_quickly(tmp_path: Path, n_pieces: int) -> None:
    """Processor time of the best of five, for a file in the page cache."""
    cfg = tiny_config(vocab_size=n_pieces, dim=32, n_layers=1, tied_head=True)
    small = small_vocab(300)
    more = [f"\u2581piece{i}" for i in range(n_pieces - 300)]
    vocab = Vocab(
        small.pieces + more,
        small.scores + [-float(i) for i in range(len(more))],
        small.types + [1] * len(more),
    )
    path = write_gguf(tmp_path / "m", cfg, random_model(cfg, 1), "F32", vocab)
    times = []
    for _ in range(5):
        start = time.process_time()
        open_checkpoint(path).close()
        times.append(time.process_time() - start)
    assert min(times) < (0.1 if n_pieces == 32_000 else 0.25), times
