"""One trained model in every container: all readers see the same weights."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from writers import to_half_pairing

from rllama.errors import FormatError
from rllama.formats import open_checkpoint, open_gguf_vocabulary, tokenizer_source

DATA = os.environ.get("RLLAMA_TEST_DATA", "")
pytestmark = pytest.mark.skipif(not DATA, reason="RLLAMA_TEST_DATA is not set")
STORIES = Path(DATA) / "stories260K"


@pytest.mark.parametrize("name", ["stories260K.v1.bin", "stories260K.f32.gguf", "hf"])
def test_stories_containers_hold_the_same_weights(name: str) -> None:
    first, other = open_checkpoint(STORIES / "stories260K.bin"), open_checkpoint(STORIES / name)
    assert first.config is not None
    assert other.config is not None
    assert set(first.tensors) == set(other.tensors)
    for key, view in first.tensors.items():
        want = view.to_f32()
        if other.config.rope_style == "half" and key.endswith((".wq", ".wk")):
            want = to_half_pairing(want, want.shape[0] // first.config.head_dim)
        np.testing.assert_array_equal(other.tensors[key].to_f32(), want, err_msg=key)
    for field in ("dim", "ffn_dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size",
                  "max_seq_len", "norm_eps", "rope_theta", "tied_head"):  # fmt: skip
        assert getattr(first.config, field) == getattr(other.config, field), field
    first.close()
    other.close()


def test_stories_llama2c_finds_tok512_beside() -> None:
    source = open_checkpoint(STORIES / "stories260K.bin").tokenizer
    assert source is not None
    assert (source.kind, len(source.pieces)) == ("vocab", 512)
    assert Path(source.path or "").name == "tok512.bin"


def test_stories_hf_takes_a_named_tokenizer() -> None:
    checkpoint = open_checkpoint(STORIES / "hf", tokenizer_path=STORIES / "tok512.bin")
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer.path == str(STORIES / "tok512.bin")
    checkpoint.close()


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("llama2/tokenizer.model", "spm", 0),
        ("llama2/tokenizer.bin", "vocab", 32000),
        ("vocab/ggml-vocab-llama-spm.gguf", "vocab", 32000),
    ],
)
def test_real_tokenizers_are_recognised(name: str, kind: str, count: int) -> None:
    source = tokenizer_source(str(Path(DATA) / name))
    assert (source.kind, len(source.pieces), bool(source.model)) == (kind, count, kind == "spm")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("stories260K/hf/config.json", FormatError),
        ("stories260K/stories260K.bin", FormatError),
        ("stories260K/stories260K.v1.bin", FormatError),
        ("stories260K/golden.npz", FormatError),
    ],
)
def test_other_files_are_no_tokenizers(name: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=Path(name).name):
        tokenizer_source(str(Path(DATA) / name))


def test_real_vocabulary_of_32000_pieces_opens() -> None:
    source = open_gguf_vocabulary(str(Path(DATA) / "vocab/ggml-vocab-llama-spm.gguf"))
    assert source.pieces[259:262] == ("▁▁", "▁t", "er")
    assert len(source.scores) == len(source.types) == 32000
