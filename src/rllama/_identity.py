"""Whose package this is: another project has the same name on the public registry."""

from __future__ import annotations

import os
from types import ModuleType


def check_package(init_file: str, version: str) -> None:
    """Refuse a folder into which two packages named rllama were installed.

    Raises:  ImportError naming what was found
    """
    folder = os.path.dirname(os.path.abspath(init_file))
    site = os.path.dirname(folder)
    try:
        names = os.listdir(site)
    except OSError:
        return
    ours = f"rllama-{version}.dist-info"
    foreign = sorted(
        name
        for name in names
        if name.startswith("rllama-") and name.endswith(".dist-info") and name != ours
    )
    # A module rllama.*.so beside the folder is how the other one, if compiled, shadows or joins us.
    foreign += sorted(
        name for name in names if name.startswith("rllama.") and name.endswith((".so", ".pyd"))
    )
    if foreign:
        raise ImportError(_message(folder, ", ".join(foreign)))


def require_ours(package: ModuleType) -> None:
    """Refuse to run below a foreign `rllama/__init__.py`. Raises ImportError."""
    if getattr(package, "check_package", None) is not check_package:
        where = os.path.dirname(getattr(package, "__file__", None) or "?")
        raise ImportError(_message(where, "an __init__.py that is not ours"))


def _message(folder: str, found: str) -> str:
    return (
        f"{folder} mixes two different packages named rllama (found {found}); uninstall every "
        "package of that name, delete the folder, and install this one again from its checkout"
    )
