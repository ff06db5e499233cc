"""The writers of these tests and the public libraries mean the same files."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from writers import random_model, small_vocab, tiny_config, write_gguf, write_hf

from rllama.formats import names, open_checkpoint
from rllama.quant import dequantize

CFG = tiny_config(dim=64, head_dim=16)
MODEL = random_model(CFG, 21)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_gguf_library_reads_the_same(kind: str, tmp_path: Path) -> None:
    library = pytest.importorskip("gguf")
    path = write_gguf(tmp_path / "m.gguf", CFG, MODEL, kind, small_vocab(CFG.vocab_size))
    theirs = {tensor.name: tensor for tensor in library.GGUFReader(path).tensors}
    ours = open_checkpoint(path)
    assert {names.in_file(names.GGUF, name) for name in ours.tensors} == set(theirs)
    for name, view in ours.tensors.items():
        tensor = theirs[names.in_file(names.GGUF, name)]
        assert bytes(view.data) == tensor.data.tobytes()
        want = library.quants.dequantize(tensor.data, tensor.tensor_type)
        got = dequantize(view.dtype.name, bytes(view.data), view.shape)
        np.testing.assert_array_equal(got, want.reshape(view.shape))
    ours.close()


def test_gguf_of_the_library_opens(tmp_path: Path) -> None:
    library = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    writer = library.GGUFWriter(path, "llama")
    writer.add_context_length(CFG.max_seq_len)
    writer.add_embedding_length(CFG.dim)
    writer.add_block_count(CFG.n_layers)
    writer.add_feed_forward_length(CFG.ffn_dim)
    writer.add_head_count(CFG.n_heads)
    writer.add_head_count_kv(CFG.n_kv_heads)
    writer.add_layer_norm_rms_eps(CFG.norm_eps)
    writer.add_rope_dimension_count(CFG.head_dim)
    for name, x in MODEL.items():
        writer.add_tensor(names.in_file(names.GGUF, name), x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(path)
    assert checkpoint.config is not None
    assert checkpoint.config.head_dim == CFG.head_dim
    for name, view in checkpoint.tensors.items():
        np.testing.assert_array_equal(view.to_f32(), MODEL[name])
    checkpoint.close()


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_safetensors_library_reads_the_same(dtype: str, tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors")
    folder = write_hf(tmp_path / "hf", CFG, MODEL, dtype)
    checkpoint = open_checkpoint(folder)
    with library.safe_open(folder / "model.safetensors", framework="np") as theirs:
        assert len(list(theirs.keys())) == len(checkpoint.tensors)
        for name, view in checkpoint.tensors.items():
            want = theirs.get_tensor(names.in_file(names.HF, name))
            np.testing.assert_array_equal(view.to_f32(), want.astype(np.float32))
    checkpoint.close()


def test_safetensors_of_the_library_opens(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("safetensors.numpy")
    folder = write_hf(tmp_path / "hf", CFG, MODEL)
    tensors = {names.in_file(names.HF, name): x for name, x in MODEL.items()}
    library.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(folder)
    for name, view in checkpoint.tensors.items():
        np.testing.assert_array_equal(view.to_f32(), MODEL[name])
    checkpoint.close()
