"""Control groups: where the limits of this process stand, in either version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def read_text(path: Path) -> str:
    """A small file of the system, stripped; empty where there is none."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def own_groups(controller: str, proc: Path, mount: Path) -> Iterator[tuple[int, Path]]:
    """The version and folder of this process's group and of every group above it.

    Notes:   version 2 has one tree, version 1 a tree per controller; inside a container the path
             may not exist below the mount, which then is our own group
    """
    for line in read_text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            yield from ((2, folder) for folder in _upwards(mount, path))
        elif controller in controllers.split(","):
            yield from ((1, folder) for folder in _upwards(mount / controller, path))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    group = mount / path.lstrip("/")
    for folder in (group, *group.parents):
        yield folder
        if folder == mount:
            return
