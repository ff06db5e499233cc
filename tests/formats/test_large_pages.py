"""Mapped files ask for large pages, and do without."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from rllama.formats.mapped_file import MappedFile

CONTENT = bytes(range(256)) * 64


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system knows no such advice")
def test_mapped_file_where_advice_is_refused_maps_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data"
    path.write_bytes(CONTENT)
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 9999)  # refused: EINVAL
    with MappedFile(str(path)) as file:
        assert bytes(file.slice(0, len(CONTENT), "all")) == CONTENT


def test_mapped_file_on_a_system_without_the_advice_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data"
    path.write_bytes(CONTENT)
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    with MappedFile(str(path)) as file:
        assert bytes(file.slice(0, len(CONTENT), "all")) == CONTENT
