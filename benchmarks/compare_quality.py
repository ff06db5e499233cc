"""What each weight type costs in quality: rllama beside llama.cpp on the very same files.

llama.cpp's own quantiser writes a file of every type from the model's values as F32. Both engines
read the same held-out texts with it, and their next-token distributions are compared with those of
the F32 file (as llama.cpp computes them, so that what the choice matters, it matters in its
favour). That has two parts: what the file lost, which is the same for both, and what the engine
adds by computing with rounded activations. The second is shown too: the divergence from the file's
own values computed in F32.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, append_record, check_load, machine, table, usable_cores
from divergence import Divergence, Logits, mean_difference, per_token

from rllama import LLM
from rllama.loader import open_model

OURS, PEER = "rllama", "llama.cpp"
_PEER_SCRIPT = Path(__file__).resolve().parent / "quality_llama_cpp.py"
_EMBEDDED = ROOT / "src" / "rllama" / "data" / "story.gguf"
_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0",
          "IQ4_NL", "IQ4_XS", "MXFP4", "Q3_K", "Q2_K", "Q4_K_M", "Q5_K_M")  # fmt: skip
_FIRST_HELD_OUT = 1_000_000_000  # as in training/data.py: seeds that no story of the training has
_WINDOW = 512
_HEADER = ("type", "held in the file", f"{PEER} mean", f"{OURS} mean", "difference",
           "99.9 % below", "same top", f"of the file: {PEER}", OURS)  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--types", nargs="+", default=list(_TYPES), type=str.upper, metavar="TYPE",
                        help="types, or mixtures as llama.cpp names them (Q4_K_M)")  # fmt: skip
    parser.add_argument("--model", type=Path, default=_EMBEDDED, help="a GGUF (default: embedded)")
    parser.add_argument("--text", type=Path, help="held-out text for another model")
    parser.add_argument("--stories", type=int, default=64, help="held-out stories, without --text")
    parser.add_argument("--cache", choices=("f16", "f32"), default="f16", help="of both sides")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--isa", help="force rllama's ISA level")
    parser.add_argument("--peer-python", default=os.environ.get("RLLAMA_PEER_PYTHON", ""),
                        help="a Python that has llama_cpp (default: this one)")  # fmt: skip
    parser.add_argument("--markdown", action="store_true", help="write the table as Markdown")
    parser.add_argument("--no-record", action="store_true", help="append no line to results/")
    return parser.parse_args()


@dataclass(frozen=True, slots=True)
class Outcome:
    """Both sides on one file.

    Units: difference and error in nats per token, ours minus theirs
    """

    kind: str
    held: dict[str, int]
    ours: Divergence
    theirs: Divergence
    difference: float
    error: float
    ours_of_file: Divergence
    theirs_of_file: Divergence

    def as_dict(self) -> dict[str, Any]:
        return {
            "held": self.held, "difference": self.difference, "error": self.error,
            OURS: self.ours.as_dict(), PEER: self.theirs.as_dict(),
            "of_file": {OURS: self.ours_of_file.as_dict(), PEER: self.theirs_of_file.as_dict()},
        }  # fmt: skip


class Peer:
    """llama.cpp in processes of its own; what it writes lies in `folder`."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._python = args.peer_python or sys.executable
        self._threads = str(args.threads)
        self._folder = folder

    def _run(self, *words: str) -> None:
        command = [self._python, str(_PEER_SCRIPT), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no word"])[-1]
            raise RuntimeError(f"llama.cpp, {words[0]} {words[-1]}: {last}")

    def quantized(self, source: Path, kind: str) -> Path:
        target = self._folder / f"{source.stem}-{kind}.gguf"
        self._run("quantize", str(source), str(target), kind)
        return target

    def logits(self, model: Path, texts: Path, cache: str) -> Logits:
        out = self._folder / f"{model.stem}-{cache}.npy"
        self._run("logits", str(model), str(texts), str(out), self._threads, cache)
        logits: Logits = np.load(out, mmap_mode="r")
        return logits


def our_logits(args: argparse.Namespace, model: Path, texts: list[list[int]]) -> Logits:
    with LLM(model, isa=args.isa, n_threads=args.threads, kv_dtype=args.cache) as llm:
        return np.concatenate([llm.logits(ids) for ids in texts])


def texts_for(args: argparse.Namespace) -> list[list[int]]:
    """Token ids of the held-out texts, each from its beginning."""
    with LLM(args.model, n_threads=args.threads) as llm:
        if args.text is None:
            return [llm.tokenize(story)[:_WINDOW] for story in held_out_stories(args.stories)]
        start = llm.tokenize("")
        ids = llm.tokenize(args.text.read_text(encoding="utf-8"), add_bos=False)
    step = _WINDOW - len(start)
    return [start + ids[at : at + step] for at in range(0, len(ids), step)]


def held_out_stories(count: int) -> Iterator[str]:
    """Stories of the embedded model's grammar that it has not seen."""
    sys.path.insert(0, str(ROOT / "training"))
    from grammar import story

    yield from map(story, range(_FIRST_HELD_OUT, _FIRST_HELD_OUT + count))


def held_types(path: Path) -> dict[str, int]:
    """How many matrices of the file have which type."""
    tensors = open_model(path).tensors.values()
    return dict(Counter(view.dtype.name for view in tensors if len(view.shape) > 1))


class Comparison:
    """The texts, the F32 file and what it says about them."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._args, self._peer = args, Peer(args, folder)
        self._texts = texts_for(args)
        self._texts_file = folder / "texts.json"
        self._texts_file.write_text(json.dumps(self._texts), encoding="utf-8")
        self._source = self._peer.quantized(args.model, "F32")
        self._reference = self._peer.logits(self._source, self._texts_file, "f32")

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self._texts]

    def run(self, kind: str) -> Outcome:
        path = self._peer.quantized(self._source, kind)
        theirs = self._peer.logits(path, self._texts_file, self._args.cache)
        ours = our_logits(self._args, path, self._texts)
        values = self._peer.quantized(path, "F32")
        exact = self._peer.logits(values, self._texts_file, "f32")
        our_nats, our_top = per_token(self._reference, ours)
        their_nats, their_top = per_token(self._reference, theirs)
        outcome = Outcome(
            kind,
            held_types(path),
            Divergence.of(our_nats, our_top),
            Divergence.of(their_nats, their_top),
            *mean_difference(our_nats, their_nats, self.lengths),
            Divergence.of(*per_token(exact, ours)),
            Divergence.of(*per_token(exact, theirs)),
        )
        path.unlink()
        values.unlink()
        return outcome


def micro(nats: float, sign: str = "") -> str:
    """In millionths of a nat."""
    value = nats * 1e6
    digits = max(0, 2 - len(str(int(abs(value)))) + (abs(value) < 1))
    return f"{value:{sign},.{digits}f}"


def row(outcome: Outcome) -> list[str]:
    """One line of the table."""
    ours, theirs = outcome.ours, outcome.theirs
    held = ", ".join(f"{n} {name}" for name, n in sorted(outcome.held.items()))
    return [
        outcome.kind,
        held,
        micro(theirs.mean),
        micro(ours.mean),
        f"{micro(outcome.difference, '+')} ± {micro(2 * outcome.error)}",
        f"{micro(theirs.p999)}; {micro(ours.p999)}",
        f"{theirs.top1:.2%}; {ours.top1:.2%}",
        micro(outcome.theirs_of_file.mean),
        micro(outcome.ours_of_file.mean),
    ]


def title(args: argparse.Namespace, lengths: list[int]) -> str:
    own = machine()
    level = f", {args.isa}" if args.isa else ""
    return (
        f"{dt.date.today().isoformat()}, {own['cpu']}{level}, commit {own['commit']}: "
        f"{args.model.name}, {sum(lengths)} tokens of {len(lengths)} texts, cache {args.cache}. "
        f"Kullback-Leibler divergence from F32 in millionths of a nat per token, {PEER} first "
        f"where both stand in a cell; the difference is {OURS} minus {PEER}, with two standard "
        "errors."
    )


def main() -> int:
    args = parse_args()
    if args.text is None and args.model != _EMBEDDED:
        print("compare_quality: --model wants --text, what it shall read", file=sys.stderr)
        return 2
    outcomes: list[Outcome] = []
    status = 0
    with tempfile.TemporaryDirectory(prefix="rllama-quality-") as folder:
        try:
            comparison = Comparison(args, Path(folder))
            for kind in args.types:
                outcomes.append(comparison.run(kind))
                print("  ".join(row(outcomes[-1])), file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            status = 130
        except RuntimeError as error:
            print(f"compare_quality: {error}", file=sys.stderr)
            status = 1
    if outcomes:
        print(title(args, comparison.lengths) + "\n")
        print(table(_HEADER, [row(outcome) for outcome in outcomes], markdown=args.markdown))
    if outcomes and not args.no_record:
        options = {
            "model": args.model.name,
            "cache": args.cache,
            "isa": args.isa,
            "n_texts": len(comparison.lengths),
            "n_tokens": sum(comparison.lengths),
        }
        append_record(
            "compare_quality",
            busy=check_load(),
            options=options,
            types={outcome.kind: outcome.as_dict() for outcome in outcomes},
        )
    return status


if __name__ == "__main__":
    sys.exit(main())
