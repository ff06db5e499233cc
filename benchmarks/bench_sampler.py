"""Cost of choosing a token: one row of logits, one thread, each usual setting.

Rows take turns, so that a row is read from the cache that a step leaves it in, not from the
nearest one. `flat` logits leave tens of thousands of tokens in a nucleus, `text` a few dozen, as
trained models do.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
from common import Timing, append_record, check_load, table
from numpy.typing import NDArray

from rllama.engine._sampler import Chain, Sampler, levels

_N_ROWS = 8
_N_SEEN = 2000


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to choose. `n_top` is the number of likeliest tokens to report, None for none."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    penalty: float = 1.0
    n_top: int | None = None

    def chain(self, n_vocab: int) -> Chain:
        chain = Chain(
            n_vocab=n_vocab, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p,
            min_p=self.min_p, repetition_penalty=self.penalty, seed=1, choice=0,
        )  # fmt: skip
        chain.see(np.random.default_rng(3).integers(0, n_vocab, _N_SEEN).tolist())
        return chain


_GREEDY, _TOP_K = Setting(temperature=0.0), Setting(0.8, top_k=20)
SETTINGS = {
    "greedy": _GREEDY,
    "greedy, penalty": replace(_GREEDY, penalty=1.1),
    "top-k 20": _TOP_K,
    "top-k 40": Setting(0.8, top_k=40),
    "top-k 40, top-p 0.95": Setting(0.8, top_k=40, top_p=0.95),
    "top-k 20, penalty": replace(_TOP_K, penalty=1.1),
    "top-p 0.95": Setting(0.8, top_p=0.95),
    "min-p 0.05": Setting(0.8, min_p=0.05),
    "top-p 0.95, min-p 0.05": Setting(0.8, top_p=0.95, min_p=0.05),
    "no filter": Setting(),
    "greedy, logprobs": replace(_GREEDY, n_top=0),
    "top-k 20, 5 logprobs": replace(_TOP_K, n_top=5),
    "no filter, 5 logprobs": Setting(n_top=5),
}


def make_rows(kind: str, n_vocab: int) -> NDArray[np.float32]:
    """[R, V] logits: normal, or normal with a few hundred that stand out."""
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((_N_ROWS, n_vocab))
    if kind == "text":
        rows *= 2.5
        for row in rows:
            row[rng.integers(0, n_vocab, 300)] += rng.exponential(4.0, 300) + 4.0
    return rows.astype(np.float32)


def time_draws(
    setting: Setting, rows: NDArray[np.float32], n_draws: int, repeats: int, level: str
) -> Timing:
    """Seconds of this thread per token, over repeats of `n_draws` draws.

    Notes:   processor time, so that work beside it costs only what it does to the caches
    """
    n_vocab = rows.shape[1]
    sampler, chain = Sampler(level), setting.chain(n_vocab)
    seconds = []
    for repeat in range(repeats + 1):
        start = time.thread_time()
        for i in range(n_draws):
            row = i % _N_ROWS
            token_id = sampler.draw(chain, rows, row, repeat * n_draws + i)
            if setting.n_top is not None:
                sampler.logprobs(rows, row, n_vocab, token_id, setting.n_top)
        seconds.append((time.thread_time() - start) / n_draws)
    return Timing.of(seconds[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vocab", nargs="+", type=int, default=[128_256, 256_000])
    parser.add_argument("--kinds", nargs="+", choices=["flat", "text"], default=["flat", "text"])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--draws", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--level", default="", choices=["", *levels()],
                        help="of instructions (default: the best that is usable)")  # fmt: skip
    parser.add_argument("--no-record", action="store_true", help="append no lines to results/")
    args = parser.parse_args()
    busy = check_load()
    columns: dict[str, list[Timing]] = {}
    for n_vocab in args.vocab:
        for kind in args.kinds:
            rows = make_rows(kind, n_vocab)
            timings = [
                time_draws(SETTINGS[name], rows, args.draws, args.repeats, args.level)
                for name in args.settings
            ]
            columns[f"{n_vocab} {kind}"] = timings
            if not args.no_record:
                named = zip(args.settings, timings, strict=True)
                level = args.level or levels()[-1]
                append_record(
                    "sampler", busy=busy, options={"vocab": n_vocab, "kind": kind, "level": level},
                    settings={name: timing.as_dict() for name, timing in named},
                )  # fmt: skip
    lines = [
        [name, *(f"{timing.median_s * 1e6:.0f}" for timing in timings)]
        for name, *timings in zip(args.settings, *columns.values(), strict=True)
    ]
    print(table(["microseconds a token", *columns], lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
