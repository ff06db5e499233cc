"""rllama beside llama.cpp: the same file, the same threads, in turns within the same minute.

Each side has a process of its own that loads the model once. In every round each runs the workload
once; the order swaps from round to round, and the machine's limits are measured in between.
llama.cpp runs through llama-cpp-python (build it on this machine, so that it uses the whole CPU)
with plain and flash attention and, for several sequences, split and unified caches: its best
figure counts. With --openvino-python, OpenVINO GenAI runs in the same rounds: a model of the same
shape, its weights compressed by its own tool to as many bits, and its best settings count.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import append_record, check_load, file_hash, machine, table, usable_cores
from duel import Duel, Outcome, Worker
from limits import Peaks
from make_model import model_path
from make_openvino import fits, folder_for
from mixes import NAMES, mix_by_name, mix_for
from shapes import SHAPES, Shape
from workloads import works

from rllama.errors import UnsupportedError

_HERE = Path(__file__).resolve().parent
OURS, PEER, OPENVINO = "rllama", "llama.cpp", "OpenVINO"
_DEFAULT_WORKS = ("prefill512", "decode", "decode_deep", "batch8", "batch16")
_WORKS = ("prefill128", *_DEFAULT_WORKS)  # the short prompt is for large models
_HEADER = ("work", "limit", PEER, OURS, "ratio", "of the limit", f"{PEER} of it", "memory")
_OPENVINO_HEADER = (OPENVINO, "ratio to it")
_OPENVINO_WEIGHTS = {"Q4_0": "int4", "Q4_K_M": "int4", "Q8_0": "int8"}  # others run without it


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["tl1b", "s15m"], choices=SHAPES)
    parser.add_argument("--types", nargs="+", default=["Q4_0", "Q8_0", "BF16", "F16"],
                        type=str.upper, metavar="TYPE", help=", ".join(NAMES))  # fmt: skip
    parser.add_argument("--work", nargs="+", default=_DEFAULT_WORKS, choices=_WORKS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--isa", help="force rllama's ISA level")
    parser.add_argument("--side", choices=(OURS, PEER, "both"), default="both")
    parser.add_argument("--peer-python", default=os.environ.get("RLLAMA_PEER_PYTHON", ""),
                        help="a Python that has llama_cpp (default: this one)")  # fmt: skip
    parser.add_argument(
        "--openvino-python",
        default=os.environ.get("RLLAMA_OPENVINO_PYTHON", ""),
        help="a Python that has openvino-genai and optimum-intel: run it too",
    )
    parser.add_argument(
        "--openvino-group",
        type=int,
        help="activations that share a scale there (default: what is fastest; 32 is as here)",
    )
    parser.add_argument("--markdown", action="store_true", help="write the table as Markdown")
    parser.add_argument("--require-idle", action="store_true", help="refuse on a busy machine")
    parser.add_argument("--no-record", action="store_true", help="append no lines to results/")
    return parser.parse_args()


def start_workers(
    args: argparse.Namespace, shape: Shape, type_name: str, path: Path
) -> list[Worker]:
    """The workers asked for, with the model loaded."""
    max_seq_len = shape.max_seq_len
    common = [str(path), str(args.threads), str(max_seq_len)]
    workers = []
    if args.side in (OURS, "both"):
        script = str(_HERE / "worker_rllama.py")
        isa = [args.isa] if args.isa else []
        workers.append(Worker(OURS, [sys.executable, script, *common, *isa]))
    if args.side in (PEER, "both"):
        script = str(_HERE / "worker_llama_cpp.py")
        workers.append(Worker(PEER, [args.peer_python or sys.executable, script, *common]))
    weights = _OPENVINO_WEIGHTS.get(type_name)
    if args.openvino_python and weights and fits(shape, weights):
        folder = openvino_folder(args.openvino_python, shape.name, weights)
        command = [args.openvino_python, str(_HERE / "worker_openvino.py"), str(folder)]
        group = [str(args.openvino_group)] if args.openvino_group else []
        workers.append(Worker(OPENVINO, [*command, *common[1:], weights, *group]))
    return workers


def openvino_folder(python: str, shape_name: str, weights: str) -> Path:
    """The model for OpenVINO in the benchmark folder, made now (in minutes) if it is missing."""
    folder = folder_for(shape_name, weights)
    if not folder.is_dir():
        say(f"making {folder}")
        command = [python, str(_HERE / "make_openvino.py"), shape_name, weights]
        if subprocess.run(command, check=False).returncode:
            raise RuntimeError(f"no OpenVINO model of {shape_name}")
    return folder


def row(shape: str, type_name: str, outcome: Outcome) -> list[str]:
    """One line of the table; a side that did not run leaves its cells empty."""
    ours, peer, third = (outcome.figures.get(name) for name in (OURS, PEER, OPENVINO))

    def rate(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"

    memory = "/".join(f"{f.peak_anon_bytes / 1e6:.0f}" for f in (ours, peer, third) if f)
    return [
        f"{shape} {type_name} {outcome.work.title}",
        rate(outcome.limit),
        rate(peer.tokens_per_s) if peer else "",
        rate(ours.tokens_per_s) if ours else "",
        f"{ours.tokens_per_s / peer.tokens_per_s:.2f}" if ours and peer else "",
        f"{ours.share:.0%}" if ours else "",
        f"{peer.share:.0%}" if peer else "",
        f"{memory} MB",
        rate(third.tokens_per_s) if third else "",
        f"{ours.tokens_per_s / third.tokens_per_s:.2f}" if ours and third else "",
    ]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def report(shape: str, type_name: str, outcome: Outcome) -> None:
    """Progress on stderr, with what a careful reader wants to know about the run."""
    parts = [f"{shape} {type_name} {outcome.work.name}: limit {outcome.limit:.0f}"]
    for name, figure in outcome.figures.items():
        parts.append(
            f"{name} {figure.tokens_per_s:.1f} tok/s ±{figure.timing.spread / 2:.0%} "
            f"[{figure.variant}]"
        )
        if figure.idle_cores > 0.02:
            parts.append(f"{name} kept {figure.idle_cores:.2f} cores busy while idle")
    if outcome.others_cores > 0.1:
        parts.append(f"other work took {outcome.others_cores:.1f} cores")
    parts.append(f"read {outcome.limits.read / 1e9:.1f} GB/s")
    say("; ".join(parts))


def compare(
    args: argparse.Namespace, shape_name: str, type_name: str, peaks: Peaks
) -> Iterator[tuple[Outcome, dict[str, Any]]]:
    """All workloads of one model, each with what the record says about model and engines."""
    shape, mix = SHAPES[shape_name], mix_by_name(type_name)
    path = model_path(shape_name, type_name)
    workers = start_workers(args, shape, type_name, path)
    model = {"path": path.name, "hash": file_hash(path)}
    extra = {"model": model, "about": {worker.name: worker.about for worker in workers}}
    try:
        duel = Duel(shape, mix, workers, peaks, args.repeats)
        for name in args.work:
            outcome = duel.run(works(shape)[name])
            report(shape_name, type_name, outcome)
            yield outcome, extra
    finally:
        for worker in workers:
            worker.close()


def record(args: argparse.Namespace, shape: str, type_name: str, outcome: Outcome,
           extra: dict[str, Any], *, busy: bool) -> None:  # fmt: skip
    options = {"threads": args.threads, "isa": args.isa, "shape": shape, "type": type_name,
               "work": outcome.work.name, "repeats": args.repeats}  # fmt: skip
    append_record(
        "compare_llama_cpp", busy=busy or outcome.others_cores > 0.1, options=options,
        limits=outcome.limits.as_dict(), limit_tokens_per_s=outcome.limit,
        figures={name: figure.as_dict() for name, figure in outcome.figures.items()},
        paired_ratio=outcome.paired_ratio, others_cores=outcome.others_cores, **extra,
    )  # fmt: skip


def title(args: argparse.Namespace, abouts: Sequence[dict[str, Any]]) -> str:
    own = machine()
    engines = ", ".join(dict.fromkeys(a["engine"] for about in abouts for a in about.values()))
    return (
        f"{dt.date.today().isoformat()}, {own['cpu']}, {args.threads} threads, {own['compiler']}, "
        f"commit {own['commit']}; {engines}. Tokens per second, median of {args.repeats}; memory "
        f"is peak anonymous memory, {'/'.join(abouts[0])}."
    )


def main() -> int:
    args = parse_args()
    try:
        for shape in args.shapes:
            for type_name in args.types:
                mix_for(SHAPES[shape], type_name)
    except UnsupportedError as error:
        say(f"compare_llama_cpp: {error}")
        return 2
    busy = check_load(refuse=args.require_idle)
    rows: list[list[str]] = []
    abouts: list[dict[str, Any]] = []
    peaks = Peaks(args.threads, memory_bytes=1 << 29)
    status = 0
    try:
        for shape in args.shapes:
            for type_name in args.types:
                for outcome, extra in compare(args, shape, type_name, peaks):
                    rows.append(row(shape, type_name, outcome))
                    abouts.append(extra["about"])
                    if not args.no_record:
                        record(args, shape, type_name, outcome, extra, busy=busy)
    except KeyboardInterrupt:
        status = 130
    except RuntimeError as error:  # a worker could not load the model or run a workload
        say(f"compare_llama_cpp: {error}")
        status = 1
    finally:
        peaks.close()
    if rows:
        print(title(args, abouts) + "\n")
        header = (*_HEADER, *_OPENVINO_HEADER)
        n_columns = len(header if args.openvino_python else _HEADER)
        shown = [cells[:n_columns] for cells in (header, *rows)]
        print(table(shown[0], shown[1:], markdown=args.markdown))
    return status


if __name__ == "__main__":
    sys.exit(main())
