"""From a file's numbers to a ModelConfig: what the families share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rllama.config import GenerationDefaults, ModelConfig, SamplingParams
from rllama.errors import ConfigError, UnsupportedError
from rllama.formats.fields import Fields

FindArch = Callable[[str], object]  # raises UnsupportedError for a name that it does not know


def build(where: str, **numbers: Any) -> ModelConfig:
    """A ModelConfig whose own complaints also name the file. Raises ConfigError.

    Notes: a window that no context outgrows is none, but for layers that also turn differently
    """
    if numbers.get("windows") and numbers.get("local_rope_theta") is None:
        seen = tuple(w if w < numbers["max_seq_len"] else 0 for w in numbers["windows"])
        numbers["windows"] = seen if any(seen) else ()
    try:
        return ModelConfig(**numbers)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def require_arch(arch: str, find_arch: FindArch | None, where: str) -> None:
    """Raises UnsupportedError, naming the file, if there is no such architecture."""
    if find_arch is None:
        return
    try:
        find_arch(arch)
    except UnsupportedError as error:
        raise UnsupportedError(f"{where}: {error}") from None


def generation_defaults(values: Mapping[str, Any], where: str) -> GenerationDefaults:
    """Sampling defaults of a model. Raises ConfigError, naming the file, where one is out of range.

    Notes: values by the names of SamplingParams, None where the file has none
    """
    try:
        checked = SamplingParams(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return GenerationDefaults(
        temperature=checked.temperature, top_k=checked.top_k, top_p=checked.top_p,
        min_p=checked.min_p, repetition_penalty=checked.repetition_penalty,
    )  # fmt: skip


def wide_layers(windows: tuple[int, ...]) -> tuple[int, ...]:
    """The layers that see everything where others have a window."""
    return tuple(i for i, window in enumerate(windows) if not window)


def head_dim_of(fields: Fields, key: str, dim: int, n_heads: int, dim_key: str) -> int:
    """The head width: stated, or dim shared among the heads. Raises ConfigError."""
    if key in fields:
        head_dim = fields.whole(key, high=1024)
        if head_dim % 2:
            raise fields.fail(key, f"is {head_dim}; it must be even")
        return head_dim
    if dim % n_heads:
        raise fields.fail(
            dim_key, f"{dim} is no multiple of the {n_heads} heads, and {key} is missing"
        )
    return dim // n_heads
