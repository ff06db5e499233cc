"""GGUF models in several files: any piece opens all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from formats.hostile_gguf import CFG, MODEL, base
from formats.writers import split_gguf, write_pieces

from rllama.errors import ConfigError
from rllama.formats import open_checkpoint
from rllama.loader import load


@pytest.mark.parametrize("n_pieces", [2, 3, 12])
def test_split_gguf_holds_what_the_whole_holds(tmp_path: Path, n_pieces: int) -> None:
    """Twelve pieces for eleven tensors: the first holds keys alone."""
    (tmp_path / "whole").write_bytes(base().to_bytes())
    whole = open_checkpoint(tmp_path / "whole")
    for path in write_pieces(tmp_path, split_gguf(base(), n_pieces)):
        checkpoint = open_checkpoint(path)
        assert checkpoint.config == whole.config
        assert checkpoint.tokenizer is not None
        assert checkpoint.tensors.keys() == whole.tensors.keys() == MODEL.keys()
        for name, view in whole.tensors.items():
            assert bytes(checkpoint.tensors[name].data) == bytes(view.data)
        assert len(checkpoint.metadata["files"]) == n_pieces
        checkpoint.close()
    whole.close()


def test_split_gguf_in_a_folder_is_one_model(tmp_path: Path) -> None:
    write_pieces(tmp_path, split_gguf(base(), 3))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.path.endswith("tiny-00001-of-00003.gguf")
    assert len(checkpoint.tensors) == len(MODEL)
    checkpoint.close()
    (tmp_path / "other.gguf").write_bytes(base().to_bytes())
    with pytest.raises(ConfigError, match=r"several models.*other\.gguf, tiny-00001-of-00003"):
        open_checkpoint(tmp_path)


def test_split_gguf_loads_and_runs(tmp_path: Path) -> None:
    paths = write_pieces(tmp_path, split_gguf(base(), 3))
    loaded = load(paths[1])
    assert loaded.cfg.dim == CFG.dim
    assert loaded.tokenizer is not None
    loaded.checkpoint.close()


def test_split_gguf_tensors_name_their_own_file(tmp_path: Path) -> None:
    paths = write_pieces(tmp_path, split_gguf(base(), 3))
    checkpoint = open_checkpoint(paths[0])
    assert checkpoint.tensors["embed"].origin.startswith(f"{paths[0]}:")
    assert checkpoint.tensors["final_norm"].origin.startswith(f"{paths[2]}:")
    checkpoint.close()
