"""A small trained model in every container gives the texts and logits of another implementation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rllama import LLM, SamplingParams

N_POSITIONS = 200  # after BOS, as the golden texts were made
FILES = {
    "llama2c-v0": ("stories260K.bin", None),
    "llama2c-v1": ("stories260K.v1.bin", None),
    "gguf": ("stories260K.f32.gguf", None),
    "hugging-face": ("hf", "tok512.bin"),
}


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("container", FILES)
def test_greedy_texts_and_logits_match_at_every_level(
    stories: Path, isa: str, container: str, n_threads: int
) -> None:
    name, tokenizer = FILES[container]
    texts = json.loads((stories / "greedy_texts.json").read_text())
    golden = np.load(stories / "golden.npz")
    tokenizer_path = stories / tokenizer if tokenizer else None
    with LLM(stories / name, tokenizer_path=tokenizer_path, isa=isa, n_threads=n_threads) as llm:
        for prompt, want in texts.items():
            n_new = N_POSITIONS + 1 - len(llm.tokenize(prompt, add_bos=True))
            params = SamplingParams(temperature=0, max_new_tokens=n_new)
            got = prompt + llm.generate(prompt, params).text
            assert got.removesuffix("\n") == want.removesuffix("\n"), (isa, prompt)
        logits = llm.logits(golden["tokens"].tolist())
        assert np.abs(logits - golden["logits"]).max() < 1e-3, isa
