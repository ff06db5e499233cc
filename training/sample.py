"""Draw stories from the model: python training/sample.py --prompt "Once upon a time"."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece as spm
import torch
from export import HERE, MODEL
from model import Llama
from readback import read

BOS, EOS = 1, 2


@dataclass(frozen=True)
class Sampling:
    """How to draw the next token; top_k 0 keeps all."""

    temperature: float = 0.8
    top_k: int = 0
    max_new_tokens: int = 150


@torch.no_grad()
def draw(
    model: Llama, prompt: list[int], seeds: Sequence[int], sampling: Sampling
) -> list[list[int]]:
    """New token ids after the prompt for each seed, all at once; EOS is not among them."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    ids = torch.tensor([prompt] * len(generators))
    for _ in range(sampling.max_new_tokens):
        scores = model(ids[:, -model.shape.max_seq_len :])[:, -1] / sampling.temperature
        if sampling.top_k:
            least = scores.topk(sampling.top_k).values[:, -1:]
            scores = scores.masked_fill(scores < least, float("-inf"))
        shares = scores.softmax(-1)
        drawn = [
            torch.multinomial(row, 1, generator=generator)
            for row, generator in zip(shares, generators, strict=True)
        ]
        ids = torch.cat((ids, torch.stack(drawn)), dim=1)
        if bool((ids[:, len(prompt) :] == EOS).any(dim=1).all()):
            break
    new = ids[:, len(prompt) :].tolist()
    return [row[: row.index(EOS)] if EOS in row else row for row in new]


def text_of(pieces: list[bytes], ids: list[int]) -> str:
    """The text of some ids, without the space that encoding puts in front."""
    return b"".join(pieces[i] for i in ids).decode(errors="replace").removeprefix(" ")


def prompt_ids(work: Path, text: str) -> list[int]:
    """BOS and the prompt."""
    vocabulary = spm.SentencePieceProcessor(model_file=str(work / "vocabulary.model"))
    return [BOS, *(vocabulary.encode(text) if text else [])]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "build")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=350)
    parser.add_argument("--temperature", type=float, default=0.8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    llama, pieces = read(options.model)
    start = prompt_ids(options.work, options.prompt)
    sampling = Sampling(options.temperature, 0, options.tokens)
    for seed, ids in enumerate(draw(llama, start, range(options.seeds), sampling)):
        print(f"--- {seed}, {len(ids)} tokens\n{text_of(pieces, start + ids)}\n")
