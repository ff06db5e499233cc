"""What every benchmark shares: machine record, repeats and quartiles, JSON lines, load check."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"

# The flags that decide which kernels a machine can run; the rest of the list is noise.
_ISA_FLAGS = (
    "sse4_2", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni",
    "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of repeated runs, as median, minimum and quartiles."""

    median_s: float
    min_s: float
    q1_s: float
    q3_s: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Summarise. Raises ValueError for an empty list."""
        if not seconds:
            raise ValueError("no runs to summarise")
        if len(seconds) == 1:
            only = seconds[0]
            return cls(only, only, only, only, 1)
        q1, _, q3 = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(statistics.median(seconds), min(seconds), q1, q3, len(seconds))

    @property
    def spread(self) -> float:
        """Distance of the quartiles as a share of the median."""
        return (self.q3_s - self.q1_s) / self.median_s if self.median_s else 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(run: Callable[[], object], *, repeats: int = 5, warmup: int = 1) -> Timing:
    """Time `run` after warming up."""
    for _ in range(warmup):
        run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return Timing.of(seconds)


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _first_line(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return (done.stdout.strip().splitlines() or [""])[0]


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """The machine and the source state: what a figure means nothing without."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    model = info.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in info:
        model += f" (family {info['cpu family']}, model {info['model']})"
    dirty = _first_line("git", "status", "--porcelain", "--untracked-files=no", "src") != ""
    return {
        "cpu": model,
        "arch": platform.machine(),
        "cores": usable_cores(),
        "isa_flags": [flag for flag in _ISA_FLAGS if flag in flags],
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "compiler": _first_line(os.environ.get("CC", "cc"), "--version"),
        "commit": _first_line("git", "rev-parse", "--short=12", "HEAD") + ("+" if dirty else ""),
    }


def machine_slug(record: dict[str, Any]) -> str:
    """A file name for this kind of machine, such as `amd-epyc-family-25-model-17-2c`."""
    words = re.sub(r"[^a-z0-9]+", "-", str(record["cpu"]).lower()).strip("-")
    return f"{words}-{record['cores']}c"


def busy_cpu_s() -> float:
    """Seconds of CPU that the whole machine has spent since it started, stolen time included."""
    with open("/proc/stat", encoding="ascii") as stat:
        fields = stat.readline().split()[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _cores_in_use() -> float:
    """Cores that others keep busy right now; the load average where the kernel tells no more."""
    try:
        before = busy_cpu_s()
    except (OSError, ValueError):
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    start = time.perf_counter()
    time.sleep(0.5)
    return (busy_cpu_s() - before) / (time.perf_counter() - start)


def check_load(*, refuse: bool = False) -> bool:
    """Say on stderr that the machine is busy; with `refuse`, end instead. True where busy."""
    cores = _cores_in_use()
    if cores < 0.2:
        return False
    message = f"other work keeps {cores:.1f} cores busy; figures will be off"
    if refuse:
        raise SystemExit(f"{message}. Wait, or drop --require-idle.")
    print(f"warning: {message}", file=sys.stderr)
    return True


def append_record(benchmark: str, *, busy: bool, path: Path | None = None, **values: Any) -> Path:
    """Append one JSON line to this machine's results file and return the file's path."""
    record = machine()
    line = {
        "benchmark": benchmark,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        **record,
        "busy": busy,
        **values,
    }
    target = path or RESULTS / f"{machine_slug(record)}.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line, ensure_ascii=False) + "\n")
    return target


def file_hash(path: Path) -> str:
    """Hash of a model file, remembered in a file beside it while size and time stay the same."""
    stat = path.stat()
    key = f"{stat.st_size} {stat.st_mtime_ns}"
    memo = path.with_name(path.name + ".hash")
    if memo.is_file():
        stored_key, _, stored = memo.read_text(encoding="utf-8").partition("\n")
        if stored_key == key:
            return stored.strip()
    with path.open("rb") as data:
        digest = hashlib.file_digest(data, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    memo.write_text(f"{key}\n{digest}\n", encoding="utf-8")
    return digest


def bench_dir() -> Path:
    """Where made models lie: `$RLLAMA_BENCH_DIR`, else `~/.cache/rllama-bench`."""
    chosen = os.environ.get("RLLAMA_BENCH_DIR")
    return Path(chosen) if chosen else Path.home() / ".cache" / "rllama-bench"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
    """Align rows into columns of text, or write a Markdown table."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    if markdown:
        rule = ["-" * width for width in widths]
        lines = [header, rule, *rows]
        return "\n".join(
            "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
            for line in lines
        )
    lines = [header, *rows]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
