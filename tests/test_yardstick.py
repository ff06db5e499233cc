"""The measured bandwidth is kept between runs, and damage to the file costs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from rllama import yardstick


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_bandwidth_is_unknown_until_measured() -> None:
    assert yardstick.load_bandwidth(2) is None


def test_bandwidth_is_kept_per_thread_count() -> None:
    assert yardstick.save_bandwidth(40e9, 2) == yardstick.bandwidth_file()
    yardstick.save_bandwidth(25e9, 1)
    assert yardstick.load_bandwidth(2) == 40e9
    assert yardstick.load_bandwidth(1) == 25e9
    assert yardstick.load_bandwidth(4) is None


@pytest.mark.parametrize("damage", ["", "[", "[]", '"x"', "null", "\x00"])
def test_bandwidth_damaged_file_counts_as_unmeasured(damage: str) -> None:
    path = yardstick.save_bandwidth(40e9, 2)
    assert path is not None
    path.write_text(damage)
    assert yardstick.load_bandwidth(2) is None
    yardstick.save_bandwidth(41e9, 2)
    assert yardstick.load_bandwidth(2) == 41e9


@pytest.mark.parametrize("value", [-1.0, 0, "fast", None, [1]])
def test_bandwidth_nonsense_counts_as_unmeasured(value: object) -> None:
    yardstick.save_bandwidth(value, 2)  # type: ignore[arg-type]
    assert yardstick.load_bandwidth(2) is None


def test_bandwidth_nowhere_to_keep_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = home / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert yardstick.save_bandwidth(40e9, 2) is None
    assert yardstick.load_bandwidth(2) is None
