"""Architectures. A checkpoint names one; `find` gives the class that computes it."""

from __future__ import annotations

import difflib
from importlib import import_module

from rllama.errors import UnsupportedError
from rllama.models.base import Decoder

# What checkpoints call themselves -> "module:class". A look-alike is one more row.
ALIASES: dict[str, str] = {
    "llama": "llama:Llama",
    "LlamaForCausalLM": "llama:Llama",
}


def find(arch: str) -> type[Decoder]:
    """The class of an architecture. Raises UnsupportedError with the nearest known name."""
    home = ALIASES.get(arch)
    if home is None:
        arch = arch if len(arch) <= 40 else arch[:37] + "..."
        near = difflib.get_close_matches(arch, ALIASES, n=1, cutoff=0.4)
        hint = f"; the nearest known one is {near[0]!r}" if near else ""
        known = ", ".join(sorted(ALIASES))
        raise UnsupportedError(f"architecture {arch!r} is not supported{hint} (known: {known})")
    module, _, name = home.partition(":")
    found: type[Decoder] = getattr(import_module(f"rllama.models.{module}"), name)
    return found
