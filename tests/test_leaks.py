"""Memory is returned on close."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rllama import LLM, SamplingParams


def anonymous_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    pytest.skip("this system does not tell anonymous memory")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_load_generate_close_cycles() -> None:
    seen = []
    for seed in range(100):
        with LLM() as llm:
            llm.generate("Once upon a time", SamplingParams(max_new_tokens=8, seed=seed))
        seen.append(anonymous_mb())
    settled = seen[10:]
    assert max(settled) - min(settled) < 5.0, seen[::10]
