"""The yardstick: memory bandwidth as it was measured on this machine, kept between runs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
from pathlib import Path


def load_bandwidth(n_threads: int) -> float | None:
    """Bytes per second that so many threads read here, if that was ever measured."""
    value = _records().get(_key(n_threads))
    known = isinstance(value, (int, float)) and math.isfinite(value) and value > 0
    return float(value) if known else None  # type: ignore[arg-type]


def save_bandwidth(bytes_per_s: float, n_threads: int) -> Path | None:
    """Keep a measurement. Returns its file, or None where nothing can be written."""
    path = bandwidth_file()
    if path is None:
        return None
    records = {**_records(), _key(n_threads): bytes_per_s}
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(records, indent=1), encoding="utf-8")
        fresh.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        return None
    return path


def bandwidth_file() -> Path | None:
    """Where measurements are kept; None without a home."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(folder) / "rllama" / "bandwidth.json" if os.path.isabs(folder) else None


def _records() -> dict[str, object]:
    path = bandwidth_file()
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _key(n_threads: int) -> str:
    return f"{platform.node()}, {cpu_name()}, {n_threads} threads"


def cpu_name() -> str:
    """What the processor calls itself."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
