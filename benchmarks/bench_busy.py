"""A machine with other work: the same workloads idle, beside a busy loop, under a quota, twice.

Every condition is measured in each round, so that the machine's drift meets all of them alike. The
busy loop is pinned to the first usable core. A quota needs a control group that this user may make;
where it may not, the condition is left out and the table says so. `twice` is two processes at
once, each with all threads; its figure is the sum of both.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import Timing, append_record, check_load, table, usable_cores
from duel import Worker
from make_model import DRAW, model_path
from shapes import SHAPES
from workloads import Work

_HERE = Path(__file__).resolve().parent
_PERIOD_US = 100_000  # the kernel's own default
_SPIN = "import os\nos.sched_setaffinity(0, {%d})\nwhile True:\n    pass"
_SCRIPTS = {"rllama": "worker_rllama.py", "llama.cpp": "worker_llama_cpp.py"}
_SLACK_S = 0.05  # lets idle threads fall asleep and a quota's period begin anew
_AT_LEAST_S = 0.4  # some periods of a quota, and slices of the scheduler
_TWO = 2
WORKS = {
    "prefill": Work("prefill", 1, 128, 0, "prefill 128"),
    "decode": Work("decode", 1, 8, 32, "decode"),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["tl1b", "s15m"], choices=SHAPES)
    parser.add_argument("--type", default="Q8_0", type=str.upper, metavar="TYPE",
                        help=", ".join(DRAW))  # fmt: skip
    parser.add_argument("--work", nargs="+", default=list(WORKS), choices=WORKS)
    parser.add_argument("--quotas", nargs="*", type=float, default=[1.0, 1.5], metavar="CPUS")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--side", choices=(*_SCRIPTS, "both"), default="both")
    parser.add_argument("--peer-python", default=os.environ.get("RLLAMA_PEER_PYTHON", ""),
                        help="a Python that has llama_cpp (default: this one)")  # fmt: skip
    parser.add_argument("--markdown", action="store_true", help="write the table as Markdown")
    parser.add_argument("--no-record", action="store_true", help="append no lines to results/")
    return parser.parse_args()


class Quota:
    """A control group that worker processes are put into, of either version."""

    def __init__(self) -> None:
        own = Path("/sys/fs/cgroup")
        v1 = (own / "cpu").is_dir()
        self._folder = (own / "cpu" if v1 else own) / f"rllama-bench-{os.getpid()}"
        self._is_v1 = v1
        self._folder.mkdir()

    def limit(self, cpus: float | None) -> None:
        """CPUs' worth of time for all that are in; None for no limit."""
        quota_us = int(cpus * _PERIOD_US) if cpus is not None else -1
        if self._is_v1:
            (self._folder / "cpu.cfs_quota_us").write_text(str(quota_us))
        else:
            text = "max" if cpus is None else str(quota_us)
            (self._folder / "cpu.max").write_text(f"{text} {_PERIOD_US}")

    def take(self, worker: Worker) -> None:
        (self._folder / "cgroup.procs").write_text(str(worker.pid))

    def close(self) -> None:
        """To be called when its processes have ended."""
        self._folder.rmdir()


class Side:
    """Two workers of one engine, the second for `twice`, and what each condition has yielded."""

    def __init__(self, name: str, args: argparse.Namespace, shape: str, path: Path) -> None:
        self.name = name
        python = (args.peer_python if name != "rllama" else "") or sys.executable
        command = [python, str(_HERE / _SCRIPTS[name]), str(path), str(args.threads)]
        command.append(str(SHAPES[shape].max_seq_len))
        self.workers = [Worker(name, command) for _ in range(_TWO)]
        self._variant: dict[str, str] = {}
        self._n_runs = [0] * _TWO

    def run(self, shape: str, work: Work, n_workers: int) -> float:
        """Tokens per second of the first workers, all at once; best variant of an idle machine."""
        if work.name not in self._variant:
            self._variant[work.name] = self._best_variant(shape, work)
        rates = [0.0] * n_workers

        def one(index: int) -> None:
            rates[index] = self._rate(index, shape, work)

        threads = [threading.Thread(target=one, args=(i,)) for i in range(n_workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(rates)

    def _best_variant(self, shape: str, work: Work) -> str:
        variants: list[str] = self.workers[0].ask("variants", n_seqs=work.n_seqs)["variants"]
        for index in range(_TWO):
            for variant in variants:
                self._variant[work.name] = variant
                self._rate(index, shape, work)
        rates = {}
        for variant in variants:
            self._variant[work.name] = variant
            rates[variant] = self._rate(0, shape, work)
        return max(rates, key=lambda variant: rates[variant])

    def _rate(self, index: int, shape: str, work: Work) -> float:
        n_runs, seconds = 0, 0.0
        while seconds < _AT_LEAST_S:
            self._n_runs[index] += 1  # a new prompt each time: none may come from a cache
            prompts = work.prompts(SHAPES[shape], _TWO * self._n_runs[index] + index)
            reply = self.workers[index].ask(
                "run", prompts=prompts, n_steps=work.n_steps, variant=self._variant[work.name],
                keep=False,
            )  # fmt: skip
            n_runs, seconds = n_runs + 1, seconds + float(reply["seconds"])
        return n_runs * work.n_timed_tokens / seconds

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


@contextlib.contextmanager
def spinner() -> Iterator[None]:
    """A busy loop on the first usable core."""
    first = min(os.sched_getaffinity(0))
    process = subprocess.Popen([sys.executable, "-c", _SPIN % first])
    time.sleep(0.2)
    try:
        yield
    finally:
        process.kill()
        process.wait()


class Conditions:
    """The conditions by name, and the setting up of each around a run."""

    def __init__(self, quotas: Sequence[float]) -> None:
        self.quota: Quota | None = None
        with contextlib.suppress(OSError):
            self.quota = Quota()
        if self.quota is None and quotas:
            print("bench_busy: no control group can be made here: no quotas", file=sys.stderr)
        self.quotas = {f"quota {cpus:g}": cpus for cpus in quotas if self.quota is not None}
        self.names = ["idle", "busy core", *self.quotas, "twice"]

    @contextlib.contextmanager
    def around(self, name: str) -> Iterator[int]:
        """Yields the number of workers that run at once."""
        if name == "busy core":
            with spinner():
                yield 1
        elif name in self.quotas and self.quota is not None:
            self.quota.limit(self.quotas[name])
            try:
                yield 1
            finally:
                self.quota.limit(None)
        else:
            yield _TWO if name == "twice" else 1

    def close(self) -> None:
        if self.quota is not None:
            self.quota.close()


Figures = dict[tuple[str, str], list[float]]  # of (side, condition): tokens per second


def measure(
    sides: Sequence[Side], conditions: Conditions, shape: str, work: Work, repeats: int
) -> Figures:
    """Every condition and side in every round; the sides take turns in being first."""
    figures: Figures = {(side.name, name): [] for side in sides for name in conditions.names}
    for side in sides:
        side.run(shape, work, _TWO)
    for round_index in range(1, repeats + 1):
        for name in conditions.names:
            for side in sides if round_index % 2 else sides[::-1]:
                time.sleep(_SLACK_S)
                with conditions.around(name) as n_workers:
                    rate = side.run(shape, work, n_workers)
                figures[side.name, name].append(rate)
    return figures


def rows_of(figures: Figures, conditions: Conditions, sides: Sequence[Side], title: str,
            record: dict[str, Any] | None) -> list[list[str]]:  # fmt: skip
    """A line of the table per condition; what was measured goes into `record`."""
    rows = []
    for name in conditions.names:
        cells = []
        for side in sides:
            rate = Timing.of(figures[side.name, name]).median_s
            share = rate / Timing.of(figures[side.name, "idle"]).median_s
            cells += [f"{rate:,.1f}", f"{share:.0%}"]
            if record is not None:
                record.setdefault(side.name, {})[name] = rate
        rows.append([f"{title}, {name}", *cells])
    return rows


def main() -> int:
    args = parse_args()
    busy = check_load()
    names = list(_SCRIPTS) if args.side == "both" else [args.side]
    rows = []
    for shape in args.shapes:
        path = model_path(shape, args.type)
        conditions = Conditions(args.quotas)
        sides = [Side(name, args, shape, path) for name in names]
        for side in sides:
            for worker in side.workers:
                if conditions.quota is not None:
                    conditions.quota.take(worker)
        for work_name in args.work:
            work = WORKS[work_name]
            figures = measure(sides, conditions, shape, work, args.repeats)
            record: dict[str, Any] = {}
            rows += rows_of(figures, conditions, sides, f"{path.stem} {work.title}", record)
            if not args.no_record:
                options = {"shape": shape, "model": path.name, "work": work_name,
                           "threads": args.threads, "repeats": args.repeats}  # fmt: skip
                append_record("busy", busy=busy, options=options, tokens_per_s=record)
        for side in sides:
            side.close()
        conditions.close()
    header = ["tokens per second, and the share of the idle machine's"]
    for name in names:
        header += [name, "of idle"]
    print(table(header, rows, markdown=args.markdown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
