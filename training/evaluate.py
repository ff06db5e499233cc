"""Judge the exported model and write RESULTS.md: python training/evaluate.py."""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from export import HERE, MODEL
from grammar import lexicon, words_of
from model import Llama, Shape
from readback import read
from sample import Sampling, draw, prompt_ids, text_of
from train import held_out_loss, rows_of

STORY_SEEDS = (range(100, 105), range(105, 110))
SEEDS, HELD_OUT_ROWS = range(20), 256
NGRAM, MAX_REPEATS, MIN_KNOWN = 8, 2, 0.99
PROMPTS = {"BOS only": "", "Once upon a time": "Once upon a time"}
SETTINGS = {"temperature 0.8": Sampling(), "temperature 0.8, top-k 20": Sampling(top_k=20)}


@dataclass(frozen=True)
class Judgement:
    """What 20 samples of one prompt and one setting look like."""

    prompt: str
    setting: str
    known: float
    worst_known: float
    most_repeated: int

    @property
    def passed(self) -> bool:
        return self.known >= MIN_KNOWN and self.most_repeated <= MAX_REPEATS


def most_repeated(ids: list[int]) -> int:
    """How often the commonest run of eight tokens occurs."""
    runs = Counter(tuple(ids[i : i + NGRAM]) for i in range(len(ids) - NGRAM + 1))
    return max(runs.values(), default=0)


def whole_words(text: str, ended: bool) -> list[str]:
    """The words; the last one does not count where the token limit may have cut it."""
    words = words_of(text)
    return words if ended or not text[-1:].isalpha() else words[:-1]


def judge(model: Llama, pieces: list[bytes], start: list[int], names: tuple[str, str]) -> Judgement:
    """Sample all seeds and count words and repeats."""
    sampling, counts, repeats = SETTINGS[names[1]], [], 0
    for ids in draw(model, start, SEEDS, sampling):
        words = whole_words(text_of(pieces, start + ids), len(ids) < sampling.max_new_tokens)
        counts.append((sum(word in lexicon() for word in words), len(words)))
        repeats = max(repeats, most_repeated(ids))
    known = sum(k for k, _ in counts) / sum(n for _, n in counts)
    return Judgement(*names, known, min(k / n for k, n in counts), repeats)


def losses(work: Path, shipped: Llama) -> tuple[float, float]:
    """Held-out loss in nats per token, of the float checkpoint and of the shipped weights."""
    checkpoint = torch.load(work / "model.pt", weights_only=True)
    trained = Llama(Shape(**checkpoint["shape"]))
    trained.load_state_dict(checkpoint["state"])
    rows = rows_of(np.load(work / "held_out.npy"), trained.shape.max_seq_len)[:HELD_OUT_ROWS]
    return held_out_loss(trained, rows), held_out_loss(shipped, rows)


def report(work: Path, path: Path) -> str:
    """The whole of RESULTS.md."""
    model, pieces = read(path)
    trained, shipped = losses(work, model)
    with (HERE / "loss.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    count = sum(p.numel() for p in model.parameters())
    rows = [
        judge(model, pieces, prompt_ids(work, text), (name, setting))
        for name, text in PROMPTS.items()
        for setting in SETTINGS
    ]
    lines = ["# What the embedded model can do", "", "Written by `training/evaluate.py`.", ""]
    lines += [f"- {count:,} parameters, {path.stat().st_size:,} bytes as Q8_0"]
    lines += [
        f"- trained on {int(last['tokens']):,} tokens in {int(last['seconds']) // 60} minutes"
    ]
    lines += [f"- held-out loss {trained:.4f} nats per token as trained, {shipped:.4f} as Q8_0", ""]
    lines += [
        "Twenty seeds, 150 tokens each. A word is known if the grammar can say it; repeats is how",
        "often the commonest run of eight tokens occurs within one sample (at most two allowed).",
        "",
    ]
    lines += ["| prompt | setting | known words | worst sample | repeats | passed |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += [
        f"| {r.prompt} | {r.setting} | {r.known:.2%} | {r.worst_known:.2%} | {r.most_repeated} "
        f"| {'yes' if r.passed else 'no'} |"
        for r in rows
    ]
    return "\n".join([*lines, "", *stories(work, model, pieces)]) + "\n"


def stories(work: Path, model: Llama, pieces: list[bytes]) -> list[str]:
    """Ten whole stories, five from each prompt, seeds 100 to 109, none left out."""
    lines = [
        "## Ten stories",
        "",
        "Temperature 0.8, seeds 100 to 109, up to 350 tokens, unselected.",
    ]
    for name, seeds in zip(PROMPTS, STORY_SEEDS, strict=True):
        start = prompt_ids(work, PROMPTS[name])
        for seed, ids in zip(
            seeds, draw(model, start, seeds, Sampling(max_new_tokens=350)), strict=True
        ):
            lines += ["", f"### Seed {seed}, {name}", "", text_of(pieces, start + ids)]
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "build")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.write_text(report(options.work, options.model), encoding="utf-8")
