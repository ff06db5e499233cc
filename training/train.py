"""Train the embedded model: python training/train.py [--steps N] [--minutes M]."""

from __future__ import annotations

import argparse
import csv
import math
import time
from pathlib import Path

import numpy as np
import torch
from data import prepare
from model import Llama, Shape

HERE = Path(__file__).parent
BOS = 1
SHORT_ROW, LATE = 288, 0.6


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "build", help="data and checkpoints")
    parser.add_argument("--stories", type=int, default=150_000)
    parser.add_argument("--held-out", type=int, default=2_000)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--minutes", type=float, default=45.0, help="end earlier than --steps")
    parser.add_argument("--batch-tokens", type=int, default=2304)
    parser.add_argument("--rate", type=float, default=2.5e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def rate_at(progress: float, step: int, peak: float, warmup: int = 100) -> float:
    """Linear rise, then a cosine down to a fiftieth."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return peak * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * cosine)


def optimiser_of(model: Llama, peak: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=True)


def rows_of(tokens: np.ndarray, length: int) -> torch.Tensor:
    """Rows that begin with a story and do not overlap.

    Shapes:  [n] -> [rows, length + 1]
    """
    starts, free = [], 0
    for start in np.flatnonzero(tokens == BOS):
        if start >= free and start + length < len(tokens):
            starts.append(start)
            free = start + length
    return torch.from_numpy(
        tokens[np.array(starts)[:, None] + np.arange(length + 1)].astype(np.int64)
    )


class Batches:
    """Rows that begin with a story, in a seeded order: first of one story, later of two.

    Notes:   who is who within one story is learned sooner without another story before it
    """

    def __init__(self, tokens: np.ndarray, lengths: tuple[int, int], seed: int) -> None:
        self.tokens, self.lengths = tokens, lengths
        starts = np.flatnonzero(tokens == BOS)
        starts = starts[starts + max(lengths) < len(tokens)]
        self.starts = np.random.default_rng(seed).permutation(starts)
        self.next = 0

    def take(self, tokens: int, late: bool) -> torch.Tensor:
        """Shapes:  [tokens // length, length + 1]"""
        length = self.lengths[late]
        count = tokens // length
        if self.next + count > len(self.starts):
            self.next = 0
        starts = self.starts[self.next : self.next + count]
        self.next += count
        return torch.from_numpy(
            self.tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)
        )


@torch.no_grad()
def held_out_loss(model: Llama, rows: torch.Tensor, batch: int = 8) -> float:
    """Mean loss per token in nats, in float32."""
    model.eval()
    losses = [model.loss(part).item() * len(part) for part in rows.split(batch)]
    model.train()
    return sum(losses) / len(rows)


def save(model: Llama, path: Path, step: int) -> None:
    torch.save({"shape": model.shape.as_dict(), "step": step, "state": model.state_dict()}, path)


class LossLog:
    """The loss curve as a CSV file."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w", newline="")
        self.rows = csv.writer(self.file)
        self.rows.writerow(["step", "tokens", "seconds", "rate", "train_loss", "held_out_loss"])
        self.recent: list[float] = []

    def write(self, at: tuple[int, int, float, float], held_out: float | None) -> None:
        """Mean training loss since the last row; the held-out loss where it was measured."""
        step, tokens, seconds, rate = at
        mean, self.recent = sum(self.recent) / len(self.recent), []
        held = "" if held_out is None else f"{held_out:.4f}"
        self.rows.writerow([step, tokens, round(seconds), f"{rate:.2e}", f"{mean:.4f}", held])
        self.file.flush()


def learn(model: Llama, optimiser: torch.optim.AdamW, rows: torch.Tensor, rate: float) -> float:
    """One step; the loss before it."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(rows)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return loss.item()


def train(args: argparse.Namespace) -> None:
    """Run the schedule; writes model.pt and loss.csv into the work folder."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model = Llama(Shape(vocab_size=args.vocab_size))
    context = model.shape.max_seq_len
    batches = Batches(np.load(args.work / "train.npy"), (SHORT_ROW, context), args.seed)
    held_out = rows_of(np.load(args.work / "held_out.npy"), context)[:64]
    optimiser, log = optimiser_of(model, args.rate), LossLog(args.work / "loss.csv")
    started, step, tokens, progress = time.monotonic(), 0, 0, 0.0
    while progress < 1:
        rate = rate_at(progress, step, args.rate)
        rows = batches.take(args.batch_tokens, late=progress >= LATE)
        log.recent.append(learn(model, optimiser, rows, rate))
        step, tokens = step + 1, tokens + rows[:, 1:].numel()
        elapsed = time.monotonic() - started
        progress = max(step / args.steps, elapsed / 60 / args.minutes)
        if step % 50 == 0 or progress >= 1:
            judged = step % 500 == 0 or progress >= 1
            held = held_out_loss(model, held_out) if judged else None
            log.write((step, tokens, elapsed, rate), held)
        if step % 250 == 0 or progress >= 1:
            save(model, args.work / "model.pt", step)


if __name__ == "__main__":
    options = arguments()
    prepare(options.work, options.vocab_size, options.stories, options.held_out)
    train(options)
