"""The kernel tests and the hostile files again, on a build that sees every wrong access."""

from __future__ import annotations

from pathlib import Path

import pytest
from native.conftest import run_script


@pytest.mark.usefixtures("sanitized_build")
@pytest.mark.parametrize("area", ["kernels", "formats"])
def test_sanitizers_find_nothing(area: str) -> None:
    last = run_script(str(Path("tests") / area)).splitlines()[-1]
    assert " passed" in last
    assert "failed" not in last
