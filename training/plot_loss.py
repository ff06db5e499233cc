"""Keep the loss curve: build/loss.csv to loss.csv and loss.svg: python training/plot_loss.py."""

from __future__ import annotations

import argparse
import csv
import math
import shutil
from pathlib import Path

HERE = Path(__file__).parent
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 360, 56, 28, 16, 40
SERIES = (("train_loss", "training", "#4878a8"), ("held_out_loss", "held out", "#c05030"))
TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 3.0, 5.0, 7.0)

Point = tuple[float, float]


def read(path: Path) -> dict[str, list[Point]]:
    """Per series: (million tokens, loss in nats per token)."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {
        key: [(int(row["tokens"]) / 1e6, float(row[key])) for row in rows if row[key]]
        for key, _, _ in SERIES
    }


class Axes:
    """From tokens and loss (logarithmic) to places on the page."""

    def __init__(self, points: list[Point]) -> None:
        self.most = max(x for x, _ in points)
        self.low = min(y for _, y in points) * 0.9
        self.high = max(y for _, y in points) * 1.1

    def at(self, point: Point) -> Point:
        share = math.log(point[1] / self.low) / math.log(self.high / self.low)
        x = LEFT + point[0] / self.most * (WIDTH - LEFT - RIGHT)
        return round(x, 1), round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    def ticks(self) -> list[str]:
        lines = []
        for loss in TICKS:
            if self.low <= loss <= self.high:
                y = self.at((0, loss))[1]
                lines.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>')
                lines.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{loss}</text>')
        for tokens in range(0, int(self.most) + 1, max(1, round(self.most / 6))):
            x = self.at((tokens, self.low))[0]
            lines.append(f'<text x="{x}" y="{HEIGHT - 22}" text-anchor="middle">{tokens}</text>')
        return lines


def draw(series: dict[str, list[Point]]) -> str:
    """The curve as an SVG picture."""
    axes = Axes([point for points in series.values() for point in points])
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        *axes.ticks(),
        f'<text x="{LEFT}" y="18">loss, nats per token</text>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">million tokens</text>',
    ]
    for index, (key, label, colour) in enumerate(SERIES):
        path = "L".join(f"{x} {y}" for x, y in map(axes.at, series[key]))
        lines.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        lines.append(
            f'<text x="{WIDTH - 120}" y="{18 + 16 * index}" fill="{colour}">{label}</text>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "build")
    options = parser.parse_args()
    shutil.copyfile(options.work / "loss.csv", HERE / "loss.csv")
    (HERE / "loss.svg").write_text(draw(read(HERE / "loss.csv")), encoding="utf-8")
