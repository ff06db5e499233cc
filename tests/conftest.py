"""What tests of several areas share: outside data, ISA levels, tiny models.

This folder is on the path, so `reference.*` and `formats.writers` can be imported from anywhere.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from formats.writers import random_model, small_vocab, tiny_config, write_gguf

from rllama._kernels import core

LEVELS = [name for name, _, usable in core.isa_levels() if usable]
# On builds that are many times slower the two ends; tests/native runs all levels there.
if os.environ.get("RLLAMA_TEST_SIZES") == "few":
    LEVELS = LEVELS[:: max(1, len(LEVELS) - 1)]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that RLLAMA_TEST_DATA names; without it the test is skipped."""
    folder = os.environ.get("RLLAMA_TEST_DATA")
    if not folder:
        pytest.skip("RLLAMA_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def stories(data_dir: Path) -> Path:
    """The small trained model in every container, with its golden texts."""
    return data_dir / "stories260K"


@pytest.fixture(params=LEVELS)
def isa(request: pytest.FixtureRequest) -> str:
    """Every ISA level that this machine can run."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF of a few hundred kilobytes with random weights, a vocabulary, and a long context."""
    cfg = tiny_config(max_seq_len=4096)
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    vocab = small_vocab(cfg.vocab_size)
    return write_gguf(path, cfg, random_model(cfg, seed=1), "F32", vocab)
