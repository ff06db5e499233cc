"""Every bad file is refused by a documented error, in one line, quickly, in little memory."""

from __future__ import annotations

import os
import random
import re
import shutil
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hostile import Case, Seed, all_cases, seeds

from rllama.cpu import CpuBackend
from rllama.errors import RllamaError
from rllama.formats.checkpoint import Checkpoint
from rllama.loader import open_model
from rllama.making import unpacked
from rllama.packed import PackedView
from rllama.tensor import JoinedView

CASES = all_cases()
SEEDS = list(seeds())
BACKEND = CpuBackend(n_threads=1)
MAX_SECONDS = 3.0
MAX_BYTES = 64 << 20
N_MUTATIONS = 60 if os.environ.get("RLLAMA_TEST_SIZES") == "few" else 300


@contextmanager
def bounds() -> Iterator[None]:
    """Fails if opening takes more processor time or memory than a small file justifies."""
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
        seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds < MAX_SECONDS
    assert peak < MAX_BYTES


def assert_usable(checkpoint: Checkpoint) -> None:
    """What opened must also be readable to its last byte, and packed matrices must unpack."""
    try:
        for view in checkpoint.tensors.values():
            if isinstance(view, PackedView):
                unpacked(view, BACKEND)
                continue
            for part in view.parts if isinstance(view, JoinedView) else (view,):
                assert np.frombuffer(part.data, np.uint8).max(initial=0) >= 0
    finally:
        checkpoint.close()


def assert_one_line(error: BaseException) -> None:
    text = str(error)
    assert text
    assert text.isprintable(), f"not one printable line: {text!r}"
    assert len(text) < 2000


def attempt(path: Path) -> RllamaError | None:
    """Open and read everything within bounds; the documented error, if there was one."""
    with bounds():
        try:
            assert_usable(open_model(path))
        except RllamaError as error:
            assert_one_line(error)
            return error
    return None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_hostile_file_gets_its_verdict(case: Case, tmp_path: Path) -> None:
    error = attempt(case.make(tmp_path))
    assert type(error) is (case.error or type(None)), error
    assert error is None or re.search(case.fragment, str(error)), error


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.name)
def test_hostile_seed_is_correct(seed: Seed, tmp_path: Path) -> None:
    assert_usable(open_model(seed.place(tmp_path, seed.data)))


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.name)
def test_hostile_truncation_is_refused_at_every_64th(seed: Seed, tmp_path: Path) -> None:
    for part in range(64):
        path = seed.place(fresh(tmp_path, part), seed.data[: len(seed.data) * part // 64])
        assert attempt(path) is not None, f"cut at {part}/64"


def fresh(folder: Path, number: int) -> Path:
    path = folder / str(number)
    path.mkdir()
    return path


def mutate(data: bytes, header_bytes: int, rng: random.Random) -> bytes:
    """One to four changes, most of them in the header: bits, bytes, boundary numbers, cuts."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        limit = min(header_bytes, len(out)) if rng.random() < 0.9 else len(out)
        at = rng.randrange(max(limit, 1))
        kind = rng.randrange(6)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.choice(b'\x00\x01\x7f\x80\xff"{}[],:0-9')
        elif kind == 2:
            number = rng.choice((0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63))
            size = rng.choice((4, 8))
            out[at : at + size] = (number % 256**size).to_bytes(size, "little")
        elif kind == 3:
            del out[at : at + rng.randint(1, 16)]
        elif kind == 4:
            out[at:at] = rng.randbytes(rng.randint(1, 16))
        else:
            end = min(at + rng.randint(1, 64), len(out))
            out[at:at] = out[at:end]
    return bytes(out)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.name)
def test_hostile_mutation_opens_or_is_refused(seed: Seed, tmp_path: Path) -> None:
    refused = 0
    for number in range(N_MUTATIONS):
        rng = random.Random(f"{seed.name} {number}")
        data = mutate(seed.data, seed.header_bytes, rng)
        folder = fresh(tmp_path, number)
        refused += attempt(seed.place(folder, data)) is not None
        shutil.rmtree(folder)
    assert refused > N_MUTATIONS // 2
