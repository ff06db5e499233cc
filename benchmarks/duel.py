"""Workers on one model, interleaved: the measuring loop of `compare_llama_cpp.py`."""

from __future__ import annotations

import json
import select
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import Timing, busy_cpu_s
from limits import Limits, Peaks
from mixes import Mix
from shapes import Shape
from workloads import Work

_SAMPLE_S = 0.05
_GAP_S = 0.03  # lets the threads of the side that just ran fall asleep
_CLOSE_CALL = 1.05  # variants this near the best one are all measured


class Worker:
    """One side's process. It sleeps in a read unless it is asked for something."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.peak_anon_bytes = 0
        self.about = self._read()

    def ask(self, op: str, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its reply. Raises RuntimeError with the worker's words."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"op": op, **request}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while not select.select([self._process.stdout], [], [], _SAMPLE_S)[0]:
            self._sample_memory()
        self._sample_memory()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self.name} worker ended with code {self._process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"{self.name}: {reply['error']}")
        return reply

    def _sample_memory(self) -> None:
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                self.peak_anon_bytes = max(self.peak_anon_bytes, int(line.split()[1]) << 10)

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_s(self) -> float:
        """Seconds of CPU that all threads of the worker have used."""
        total = 0
        for stat in Path(f"/proc/{self._process.pid}/task").glob("*/schedstat"):
            total += int(stat.read_text(encoding="ascii").split()[0])
        return total / 1e9

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass(slots=True)
class Runs:
    """Seconds per round of one side under one variant."""

    worker: Worker
    variant: str
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Figure:
    """What one side reached on one workload, under its best variant.

    Units: idle_cores counts cores that this side kept busy while another one ran
    """

    variant: str
    tokens_per_s: float
    timing: Timing
    share: float
    peak_anon_bytes: int
    idle_cores: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "variant": self.variant, "tokens_per_s": self.tokens_per_s, "share": self.share,
            "peak_anon_bytes": self.peak_anon_bytes, "idle_cores": self.idle_cores,
            **self.timing.as_dict(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the table.

    Units: limit in tokens per second; paired_ratio is the median over rounds of the first side to
           the second; others_cores counts cores that no side and not the driver used meanwhile
    """

    work: Work
    limits: Limits
    limit: float
    figures: dict[str, Figure]
    paired_ratio: float | None
    others_cores: float


class Duel:
    """One to three workers with a model loaded, and the limits measured beside them."""

    def __init__(
        self, shape: Shape, mix: Mix, workers: Sequence[Worker], peaks: Peaks, repeats: int
    ) -> None:
        self._shape, self._mix = shape, mix
        self._workers, self._peaks, self._repeats = workers, peaks, repeats
        self._idle_cpu_s: dict[str, float] = {}
        self._busy_s = self._others_cpu_s = 0.0

    def run(self, work: Work) -> Outcome:
        """Warm up, keep the variants that may win, then measure in turns."""
        sides = [self._contenders(worker, work) for worker in self._workers]
        self._idle_cpu_s = {worker.name: 0.0 for worker in self._workers}
        self._busy_s = self._others_cpu_s = 0.0
        for worker in self._workers:
            worker.peak_anon_bytes = 0
        measured = []
        for round_index in range(self._repeats):
            measured.append(self._limits(work))
            order = [runs for side in sides for runs in side]
            for runs in order if round_index % 2 == 0 else reversed(order):
                self._turn(runs, work, round_index)
        return self._outcome(work, sides, _median_limits(measured))

    def _limits(self, work: Work) -> Limits:
        """The limits of this minute, for a working set as large as what a step reads."""
        step_bytes = work.step_bytes(self._shape, self._mix)
        limits = self._peaks.measure(passes=1, working_set=step_bytes)
        time.sleep(_GAP_S)
        return limits

    def _seconds(self, worker: Worker, work: Work, variant: str, round_index: int) -> float:
        reply = worker.ask(
            "run",
            prompts=work.prompts(self._shape, round_index),
            n_steps=work.n_steps,
            variant=variant,
            keep=work.name == "decode_deep",
        )
        return float(reply["seconds"])

    def _contenders(self, worker: Worker, work: Work) -> list[Runs]:
        variants = worker.ask("variants", n_seqs=work.n_seqs)["variants"]
        best = {
            variant: min(self._seconds(worker, work, variant, -1 - i) for i in range(2))
            for variant in variants
        }
        bar = min(best.values()) * _CLOSE_CALL
        kept = [variant for variant in variants if best[variant] <= bar]
        worker.ask("keep_only", variants=kept)
        return [Runs(worker, variant) for variant in kept]

    def _turn(self, runs: Runs, work: Work, round_index: int) -> None:
        others = [worker for worker in self._workers if worker is not runs.worker]
        before = {worker.name: worker.cpu_s() for worker in self._workers}
        machine_before, start = busy_cpu_s(), time.perf_counter()
        runs.seconds.append(self._seconds(runs.worker, work, runs.variant, round_index))
        self._busy_s += time.perf_counter() - start
        used = {worker.name: worker.cpu_s() - before[worker.name] for worker in self._workers}
        for worker in others:
            self._idle_cpu_s[worker.name] += used[worker.name]
        self._others_cpu_s += busy_cpu_s() - machine_before - sum(used.values())
        time.sleep(_GAP_S)

    def _outcome(self, work: Work, sides: list[list[Runs]], limits: Limits) -> Outcome:
        limit = work.limit_tokens_per_s(self._shape, self._mix, limits)
        winners = [min(side, key=lambda r: statistics.median(r.seconds)) for side in sides]
        figures = {runs.worker.name: self._figure(runs, work, limit) for runs in winners}
        paired = None
        if len(winners) > 1:
            ours, theirs = (runs.seconds for runs in winners[:2])
            paired = statistics.median(t / o for o, t in zip(ours, theirs, strict=True))
        others_cores = max(0.0, self._others_cpu_s / self._busy_s)
        return Outcome(work, limits, limit, figures, paired, others_cores)

    def _figure(self, runs: Runs, work: Work, limit: float) -> Figure:
        timing = Timing.of(runs.seconds)
        tokens_per_s = work.n_timed_tokens / timing.median_s
        return Figure(
            variant=runs.variant,
            tokens_per_s=tokens_per_s,
            timing=timing,
            share=tokens_per_s / limit,
            peak_anon_bytes=runs.worker.peak_anon_bytes,
            idle_cores=self._idle_cpu_s[runs.worker.name] / self._busy_s,
        )


def _median_limits(measured: Sequence[Limits]) -> Limits:
    columns = [limits.as_dict() for limits in measured]
    return Limits(**{key: statistics.median(c[key] for c in columns) for key in columns[0]})
