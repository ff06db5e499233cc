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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "build", help="data and checkpoints")
    parser.add_argument("--stories", type=int, default=150_000)
    parser.add_argument("--held-out", type=int, default=2_000)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--minutes", type=float, default=45.0, help="end earlier than --steps")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
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
    """Cut a long run of ids into rows that overlap by one.

    Shapes:  [n] -> [n // length, length + 1]
    """
    count = (len(tokens) - 1) // length
    starts = np.arange(count)[:, None] * length + np.arange(length + 1)[None, :]
    return torch.from_numpy(tokens[starts].astype(np.int64))


@torch.no_grad()
def held_out_loss(model: Llama, rows: torch.Tensor, batch: int = 8) -> float:
    """Mean loss per token in nats, in float32."""
    model.eval()
    losses = [model.loss(part).item() * len(part) for part in rows.split(batch)]
    model.train()
    return sum(losses) / len(rows)


def save(model: Llama, path: Path, step: int) -> None:
    torch.save({"shape": model.shape.as_dict(), "step": step, "state": model.state_dict()}, path)


def train(args: argparse.Namespace) -> None:
    """Run the schedule; writes model.pt and loss.csv into the work folder."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model = Llama(Shape(vocab_size=args.vocab_size))
    rows = rows_of(np.load(args.work / "train.npy"), model.shape.max_seq_len)
    held_out = rows_of(np.load(args.work / "held_out.npy"), model.shape.max_seq_len)[:64]
    optimiser = optimiser_of(model, args.rate)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed))
    started, step, recent = time.monotonic(), 0, []
    with (args.work / "loss.csv").open("w", newline="") as file:
        log = csv.writer(file)
        log.writerow(["step", "tokens", "seconds", "rate", "train_loss", "held_out_loss"])
        while True:
            elapsed = time.monotonic() - started
            progress = max(step / args.steps, elapsed / 60 / args.minutes)
            if step % 250 == 0 or progress >= 1:
                save(model, args.work / "model.pt", step)
            if step and (step % 50 == 0 or progress >= 1):
                held = held_out_loss(model, held_out) if step % 500 == 0 or progress >= 1 else None
                mean, recent = sum(recent) / max(len(recent), 1), []
                tokens = step * args.batch * model.shape.max_seq_len
                log.writerow([step, tokens, round(elapsed), f"{rate:.2e}", f"{mean:.4f}",
                              "" if held is None else f"{held:.4f}"])  # fmt: skip
                file.flush()
            if progress >= 1:
                return
            rate = rate_at(progress, step, args.rate)
            for group in optimiser.param_groups:
                group["lr"] = rate
            at = step * args.batch % (len(order) - args.batch)
            with torch.autocast("cpu", torch.bfloat16):
                loss = model.loss(rows[order[at : at + args.batch]])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            recent.append(loss.item())
            step += 1


if __name__ == "__main__":
    options = arguments()
    prepare(options.work, options.vocab_size, options.stories, options.held_out)
    train(options)
