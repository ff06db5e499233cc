"""Draw the newest comparison of every workload as an SVG: `plot.py -o docs/speed.svg`.

A bar is the share of what the machine allowed in the minutes of the run; what it reached in tokens
per second stands beside it. The picture is the same, to the byte, for the same lines.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import RESULTS
from shapes import SHAPES
from workloads import works

OURS, PEER, OPENVINO = "rllama", "llama.cpp", "OpenVINO"
_COLOURS = {OURS: "#1f6fb4", PEER: "#aab2bd", OPENVINO: "#dd9a2e"}
_ON_BAR = {OURS: "#ffffff", PEER: "#1f2328", OPENVINO: "#1f2328"}
_INK, _PAPER, _RULE, _LIMIT = "#1f2328", "#fcfcfa", "#dfe2e6", "#b3261e"
_WIDTH_IN, _BAR_IN, _GAP_IN, _TITLE_IN = 9.0, 0.17, 0.12, 0.32
_ROOM_UP_TO = 85  # percent
_BIG = {"tl1b": "1.1B", "s15m": "15M", "s110m": "110M", "l7b": "7B", "l8b": "8B"}

Line = dict[str, Any]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.svg")
    parser.add_argument(
        "--results", type=Path, help="a file of results/ (default: the one with the newest line)"
    )
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--types", nargs="+", type=str.upper, help="default: all there are")
    parser.add_argument("--isa", help="lines with this level forced (default: with none)")
    parser.add_argument(
        "--since", default="", metavar="DATE", help="only lines from this day on, as 2026-01-31"
    )
    return parser.parse_args()


def read_lines(path: Path) -> list[Line]:
    """The comparisons of a file of results in which both sides ran."""
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [
        line
        for line in lines
        if line["benchmark"] == "compare_llama_cpp" and {OURS, PEER} <= line["figures"].keys()
    ]


def newest_file() -> Path:
    """The results with the newest comparison. Raises ValueError where there is none."""
    dated = [
        (max(line["date"] for line in lines), path)
        for path in sorted(RESULTS.glob("*.jsonl"))
        if (lines := read_lines(path))
    ]
    if not dated:
        raise ValueError(f"no comparison in {RESULTS}; run compare_llama_cpp.py first")
    return max(dated)[1]


def newest(lines: Sequence[Line], *, isa: str | None = None) -> list[Line]:
    """The last line of every shape, type and workload, in the order in which they are drawn."""
    order = {name: place for place, name in enumerate(works(next(iter(SHAPES.values()))))}
    types: dict[str, None] = {}
    last: dict[tuple[str, str, str], Line] = {}
    for line in sorted(lines, key=lambda line: str(line["date"])):
        options = line["options"]
        if options["isa"] == isa:
            types.setdefault(options["type"])
            last[options["shape"], options["work"], options["type"]] = line
    shape_order, type_order = list(_BIG), list(types)
    keys = sorted(
        last, key=lambda key: (shape_order.index(key[0]), order[key[1]], type_order.index(key[2]))
    )
    return [last[key] for key in keys]


def panels(lines: Sequence[Line]) -> list[tuple[str, list[Line]]]:
    """Lines of one shape and one workload under their title."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        options = line["options"]
        work = works(SHAPES[options["shape"]])[options["work"]].title
        found.setdefault(f"{_BIG[options['shape']]}, {work}", []).append(line)
    return list(found.items())


def rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def draw_bars(axes: Any, lines: Sequence[Line]) -> None:
    """The bars of one panel from the top down; the limit is at 100 %."""
    place = 0.0
    places = []
    for line in lines:
        figures = [(n, line["figures"][n]) for n in _COLOURS if n in line["figures"]]
        places.append(place + (len(figures) - 1) / 2)
        for name, figure in figures:
            share = 100 * figure["share"]
            axes.barh(place, share, height=0.92, color=_COLOURS[name])
            text = rate(figure["tokens_per_s"])
            if name == OURS:
                peer = line["figures"][PEER]["tokens_per_s"]
                text += f"   {figure['tokens_per_s'] / peer:.2f} x"
            inside = share > _ROOM_UP_TO  # beside the bar it would run into the limit
            axes.text(
                share + (-0.8 if inside else 0.8),
                place,
                text,
                va="center",
                fontsize=7.5,
                ha="right" if inside else "left",
                color=_ON_BAR[name] if inside else _INK,
                weight="bold" if name == OURS else "normal",
            )
            place += 1
        limit = rate(line["limit_tokens_per_s"])
        axes.text(101, places[-1], limit, va="center", fontsize=7.5, color=_LIMIT)
        place += _GAP_IN / _BAR_IN
    axes.set_ylim(place - _GAP_IN / _BAR_IN - 0.4, -0.6)
    axes.set_yticks(places, [line["options"]["type"] for line in lines], fontsize=8)


def style(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9, weight="bold", color=_INK, pad=4)
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 25))
    axes.grid(axis="x", color=_RULE, linewidth=0.7)
    axes.axvline(100, color=_LIMIT, linewidth=1.2)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_INK, labelbottom=False)
    for side in axes.spines.values():
        side.set_visible(False)


def caption(lines: Sequence[Line]) -> str:
    days = sorted({str(line["date"])[:10] for line in lines})
    first = lines[0]
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{first['cpu']}, {first['options']['threads']} threads, {when}"


def figure_of(lines: Sequence[Line]) -> Any:
    """The whole picture as a matplotlib figure."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = panels(lines)
    names = [name for name in _COLOURS if any(name in line["figures"] for line in lines)]
    heights = [
        sum(sum(n in line["figures"] for n in names) * _BAR_IN + _GAP_IN for line in group)
        for _, group in shown
    ]
    head, foot = 0.75, 0.35
    total = sum(heights) + _TITLE_IN * len(shown) + head + foot
    figure = Figure(figsize=(_WIDTH_IN, total), facecolor=_PAPER)
    top = total - head
    for (title, group), height in zip(shown, heights, strict=True):
        top -= _TITLE_IN
        axes = figure.add_axes(
            (0.09, (top - height) / total, 0.89, height / total), facecolor=_PAPER
        )
        draw_bars(axes, group)
        style(axes, title)
        top -= height
    axes.tick_params(labelbottom=True, labelsize=8)
    axes.set_xticks(range(0, 101, 25), [f"{x} %" for x in range(0, 100, 25)] + ["limit"])
    figure.text(
        0.02,
        1 - 0.22 / total,
        "Tokens per second, and the share of what the machine allows",
        fontsize=11.5,
        weight="bold",
        color=_INK,
        va="center",
    )
    figure.text(0.02, 1 - 0.46 / total, caption(lines), fontsize=8.5, color=_INK, va="center")
    figure.legend(
        [Patch(color=_COLOURS[name]) for name in names],
        names,
        loc="upper right",
        bbox_to_anchor=(0.985, 1 - 0.32 / total),
        ncols=len(names),
        fontsize=8.5,
        frameon=False,
        labelcolor=_INK,
        handlelength=1.2,
        borderpad=0,
    )
    return figure


def main() -> int:
    args = parse_args()
    import matplotlib

    try:
        lines = [
            line
            for line in read_lines(args.results or newest_file())
            if line["options"]["shape"] in args.shapes
            and line["date"] >= args.since
            and (args.types is None or line["options"]["type"] in args.types)
        ]
    except ValueError as error:
        print(f"plot: {error}", file=sys.stderr)
        return 1
    if not (lines := newest(lines, isa=args.isa)):
        print("plot: no line fits these options", file=sys.stderr)
        return 1
    with matplotlib.rc_context({"svg.hashsalt": "rllama", "font.family": "DejaVu Sans"}):
        figure_of(lines).savefig(
            args.output, format="svg", metadata={"Date": None, "Creator": None}
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
