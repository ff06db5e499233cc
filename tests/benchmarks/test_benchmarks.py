"""What the benchmarks compute from their measurements: divergences, and which lines are drawn."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not FOLDER.is_dir():
        pytest.skip("benchmarks/ is not part of an installed package")
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:  # names such as `common` are nobody else's business
        if getattr(sys.modules[name], "__file__", None) and FOLDER.samefile(
            Path(sys.modules[name].__file__ or "").parent
        ):
            del sys.modules[name]


def line(date: str, ours: float, **options: Any) -> dict[str, Any]:
    options = {
        "shape": "tl1b",
        "type": "Q4_0",
        "work": "decode",
        "isa": None,
        "threads": 2,
    } | options
    figures = {
        "rllama": {"tokens_per_s": ours, "share": ours / 100},
        "llama.cpp": {"tokens_per_s": 20.0, "share": 0.2},
    }
    return {"benchmark": "compare_llama_cpp", "date": date, "cpu": "some CPU", "options": options,
            "figures": figures, "limit_tokens_per_s": 100.0}  # fmt: skip


LINES = [
    line("2026-01-02", 40.0),
    line("2026-01-01", 30.0),
    line("2026-01-03", 50.0, isa="avx2"),
    line("2026-01-01", 90.0, work="prefill512"),
    line("2026-01-01", 10.0, shape="s15m", type="Q8_0"),
    {"benchmark": "sampler", "date": "2026-01-09", "options": {}},
]


def test_per_token_equal_logits_up_to_a_constant_diverge_nowhere() -> None:
    from divergence import per_token

    logits = np.random.default_rng(1).normal(size=(600, 50)).astype(np.float32)
    nats, same = per_token(logits, logits + np.float32(2))
    assert np.abs(nats).max() < 1e-6
    assert same.all()


def test_per_token_two_known_distributions_have_their_divergence() -> None:
    from divergence import Divergence, per_token

    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    logs = [np.log(x)[None].astype(np.float32) for x in (p, q)]
    nats, same = per_token(*logs)
    assert nats[0] == pytest.approx((p * np.log(p / q)).sum(), rel=1e-6)
    found = Divergence.of(nats, same)
    assert (found.mean, found.largest, found.top1) == (nats[0], nats[0], 0.0)


def test_mean_difference_takes_texts_as_independent() -> None:
    from divergence import mean_difference

    ours, theirs = np.array([1.0, 1.0, 3.0, 3.0]), np.zeros(4)
    mean, error = mean_difference(ours, theirs, [2, 2])
    assert mean == 2.0
    assert error == pytest.approx(1.0)  # two texts, 1 and 3: deviation sqrt(2) over sqrt(2)


def test_newest_takes_the_last_line_of_each_workload_in_drawing_order() -> None:
    from plot import newest

    lines = [entry for entry in LINES if entry["benchmark"] == "compare_llama_cpp"]
    drawn = [(x["options"]["work"], x["figures"]["rllama"]["tokens_per_s"]) for x in newest(lines)]
    assert drawn == [("prefill512", 90.0), ("decode", 40.0), ("decode", 10.0)]
    forced = newest(lines, isa="avx2")
    assert [x["figures"]["rllama"]["tokens_per_s"] for x in forced] == [50.0]


def test_plot_same_lines_give_the_same_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    import plot

    results = tmp_path / "machine.jsonl"
    results.write_text("\n".join(map(json.dumps, LINES)), encoding="utf-8")
    pictures = []
    for name in ("a.svg", "b.svg"):
        words = ["plot.py", "-o", str(tmp_path / name), "--results", str(results)]
        monkeypatch.setattr(sys, "argv", words)
        assert plot.main() == 0
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0] == pictures[1]
    assert pictures[0].count(b"#1f6fb4") > 3  # a bar of ours each, and the legend
