"""Architectures that installed packages bring: entry points of the group `rllama.architectures`."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from rllama.errors import UnsupportedError
from rllama.models.base import Decoder

GROUP = "rllama.architectures"


def find_plugin(arch: str) -> type[Decoder] | None:
    """The class that an installed package has for an architecture, or None.

    Raises:  UnsupportedError where several packages have one, or its class is of no use
    """
    found = list({point.value: point for point in entry_points(group=GROUP, name=arch)}.values())
    if not found:
        return None
    if len(found) > 1:
        which = ", ".join(sorted(_shown(point) for point in found))
        raise UnsupportedError(f"architecture {arch!r} has several plug-ins: {which}; keep one")
    return _load(found[0])


def _load(point: EntryPoint) -> type[Decoder]:
    where = f"plug-in {_shown(point)} for the architecture {point.name!r}"
    try:
        found = point.load()
    except Exception as error:
        raise UnsupportedError(
            f"{where} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, type) or not issubclass(found, Decoder):
        raise UnsupportedError(f"{where} is no subclass of rllama.models.base.Decoder")
    if not found.TENSORS:
        raise UnsupportedError(f"{where} names no tensors: its TENSORS are empty")
    return found


def _shown(point: EntryPoint) -> str:
    """The package and what it names: "example 0.1 (example:Example)"."""
    package = point.dist
    name = "" if package is None else f"{package.name} {package.version} "
    return f"{name}({point.value})"
