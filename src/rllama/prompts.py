"""Prompts: texts or token ids, one or many."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TypeGuard

import numpy as np

from rllama.errors import ConfigError

Prompt = str | Sequence[int]
ManyPrompts = list[str] | list[list[int]] | list[str | list[int]] | tuple[Prompt, ...]


def is_prompt(prompts: object) -> TypeGuard[Prompt]:
    """True for one prompt, False for a list of them; an empty list is a list of none."""
    if isinstance(prompts, (str, np.ndarray)):
        return True
    return isinstance(prompts, Sequence) and len(prompts) > 0 and isinstance(prompts[0], Integral)


def ids_of(ids: object) -> list[int]:
    """The token ids of a prompt that is no text. Raises ConfigError for anything else."""
    if not isinstance(ids, (Sequence, np.ndarray)) or isinstance(ids, (str, bytes)):
        raise ConfigError(
            f"a prompt must be a text or a list of token ids, not a {type(ids).__name__}"
        )
    for token_id in ids:
        if not isinstance(token_id, Integral) or isinstance(token_id, bool):
            raise ConfigError(f"a token id must be a whole number, not {token_id!r}")
    return [int(token_id) for token_id in ids]
