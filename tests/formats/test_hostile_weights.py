"""Weights that are not finite, and bytes that nobody wrote: an error or a text, never a crash."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import hostile_gguf_types
import hostile_safetensors
import numpy as np
import pytest
from hostile_experts import MODEL, write_mixture
from writers import GGUF_TYPE_IDS, safetensors_bytes

from rllama import LLM, SamplingParams
from rllama.errors import BackendError

GREEDY = SamplingParams(max_new_tokens=2, temperature=0.0)
NOT_FINITE = "logits are not finite at position 2; the weights may be damaged"
MATRICES = ("embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
            "down_proj", "input_layernorm", "post_attention_layernorm", "model.norm")  # fmt: skip


def answer(path: Path) -> list[int]:
    """What a model says, on one thread and on several."""
    with LLM(path, n_threads=1) as llm:
        alone = llm.generate([1, 2, 3], GREEDY).token_ids
    with LLM(path, n_threads=3) as llm:
        assert llm.generate([1, 2, 3], GREEDY).token_ids == alone
    return list(alone)


def write_gguf_of(path: Path, kind: str, value: bytes | None, seed: int = 0) -> Path:
    """A model whose matrices of this type repeat a byte, or are bytes by chance."""
    raw, rng = hostile_gguf_types.base(kind), np.random.default_rng(seed)
    for tensor in raw.tensors:
        if len(tensor.dims) == 2:
            n_bytes = len(tensor.data)
            tensor.data = rng.bytes(n_bytes) if value is None else value * n_bytes
    path.write_bytes(raw.to_bytes())
    return path


@pytest.mark.parametrize("kind", GGUF_TYPE_IDS)
def test_weights_that_are_not_finite_give_an_error(kind: str, tmp_path: Path) -> None:
    path = write_gguf_of(tmp_path / "m", kind, b"\xff")
    with pytest.raises(BackendError, match=NOT_FINITE):
        answer(path)


@pytest.mark.parametrize("kind", GGUF_TYPE_IDS)
def test_weights_of_any_bytes_give_a_text_or_an_error(kind: str, tmp_path: Path) -> None:
    for seed in range(3):
        path = write_gguf_of(tmp_path / str(seed), kind, None, seed)
        with suppress(BackendError):  # values that grow beyond f32 in a later step
            assert all(0 <= token < hostile_gguf_types.CFG.vocab_size for token in answer(path))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", MATRICES)
def test_one_value_that_is_not_finite_gives_an_error(
    name: str, value: float, tmp_path: Path
) -> None:
    entries = dict(hostile_safetensors.ENTRIES)
    key = next(key for key in entries if name in key)
    kind, shape, data = entries[key]
    x = np.frombuffer(data, "<f4").reshape(shape).copy()
    x.flat[3 * shape[-1] + 5 if x.ndim > 1 else 5] = value  # row 3 of the embedding is asked for
    entries[key] = kind, shape, x.tobytes()
    hostile_safetensors.place_weights(tmp_path, safetensors_bytes(entries))
    with pytest.raises(BackendError, match=NOT_FINITE):
        answer(tmp_path)


@pytest.mark.parametrize("part", ["router", "w_gate", "w_up", "w_down"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_mixture_that_is_not_finite_gives_an_error(part: str, value: float, tmp_path: Path) -> None:
    model = {
        name: np.full_like(x, value) if name.endswith(part) else x for name, x in MODEL.items()
    }
    path = write_mixture(tmp_path / "m", model)
    with pytest.raises(BackendError, match=NOT_FINITE):
        answer(path)
