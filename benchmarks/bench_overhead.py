"""Cost of Python, Cython and dispatch: decode steps of models whose matrices cost nothing.

What is left is the step itself: plan, batch, some nine backend calls per layer, a draw per
sequence. Runs are short, because attention over hundreds of positions is work and no overhead.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from common import Timing, append_record, check_load
from make_model import make
from mixes import mix_by_name
from shapes import Shape

from rllama.config import EngineConfig, SamplingParams
from rllama.engine.engine import Engine
from rllama.engine.request import Request
from rllama.loader import load

_CALLS_PER_LAYER = 9


def tiny(n_layers: int) -> Shape:
    return Shape(f"tiny{n_layers}", 64, n_layers, 2, 2, 64, 512)


def time_steps(engine: Engine, n_seqs: int, n_steps: int, repeats: int) -> Timing:
    """Seconds of one decode step of `n_seqs` sequences, medians over runs of `n_steps`."""
    sampling = SamplingParams(temperature=0, ignore_eos=True, max_new_tokens=n_steps + 1)
    seconds = []
    for repeat in range(repeats):
        for seq in range(n_seqs):
            prompt = (300 + repeat, 300 + seq)
            engine.submit(Request(prompt, sampling.resolved(engine.model.cfg.generation)))
        engine.step()
        start = time.perf_counter()
        for _ in range(n_steps):
            engine.step()
        seconds.append((time.perf_counter() - start) / n_steps)
        if engine.has_work:
            raise RuntimeError("sequences are left over: the steps were not all decodes")
    return Timing.of(seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", nargs="+", type=int, default=[6, 32])
    parser.add_argument("--seqs", nargs="+", type=int, default=[1, 8, 16])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--isa", help="force an ISA level")
    parser.add_argument("--fail-above", type=float, metavar="US",
                        help="exit 1 if a call of the deepest model costs more")  # fmt: skip
    parser.add_argument("--no-record", action="store_true", help="append no lines to results/")
    args = parser.parse_args()
    busy = check_load()
    step_s: dict[tuple[int, int], float] = {}
    with tempfile.TemporaryDirectory(prefix="rllama-bench-") as folder:
        for n_layers in args.layers:
            path = Path(folder) / f"{n_layers}.gguf"
            make(path, tiny(n_layers), mix_by_name("Q8_0"), seed=1)
            config = EngineConfig(kv_dtype="f16")
            loaded = load(path, n_threads=1, isa=args.isa, engine=config)
            engine = Engine(loaded.model, None, loaded.engine, loaded.backend)
            for n_seqs in args.seqs:
                timing = time_steps(engine, n_seqs, args.steps, args.repeats)
                step_s[n_layers, n_seqs] = timing.median_s
                print(
                    f"{n_layers} layers, {n_seqs} sequences: {timing.median_s * 1e6:.0f} us a step"
                )
                if not args.no_record:
                    options = {"layers": n_layers, "seqs": n_seqs, "isa": args.isa}
                    append_record("overhead", busy=busy, options=options, **timing.as_dict())
            engine.close()
            loaded.close()
    return judge(step_s, args.fail_above)


def judge(step_s: dict[tuple[int, int], float], fail_above_us: float | None) -> int:
    """Print the cost of a backend call, from the difference of the two depths."""
    depths = sorted({n_layers for n_layers, _ in step_s})
    if len(depths) < 2:
        return 0
    low, high = depths[0], depths[-1]
    n_seqs = min(n for _, n in step_s)
    per_layer = (step_s[high, n_seqs] - step_s[low, n_seqs]) / (high - low)
    call_us = per_layer / _CALLS_PER_LAYER * 1e6
    print(f"a layer costs {per_layer * 1e6:.1f} us, a backend call {call_us:.2f} us, "
          f"the rest of a step {(step_s[low, n_seqs] - low * per_layer) * 1e6:.0f} us")  # fmt: skip
    return int(fail_above_us is not None and call_us > fail_above_us)


if __name__ == "__main__":
    sys.exit(main())
