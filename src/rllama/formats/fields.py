"""Fields: typed access to numbers that a file gives, with errors that name file and field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rllama.errors import ConfigError

MAX_SIZE = 2**31 - 1
_MISSING: Any = object()


def shown(value: object) -> str:
    """A value as a message shows it: short, on one line."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a whole number beyond any use"
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Fields:
    """A dict from a file. Every accessor raises ConfigError naming file, field and value.

    Notes:   a bool is not a number here, though Python thinks so; None counts as absent
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def fail(self, key: str, problem: str) -> ConfigError:
        """The error for a field, for the caller to raise."""
        return ConfigError(f"{self.where}: {key} {problem}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _MISSING:
            raise self.fail(key, "is missing")
        return default

    def require(self, *keys: str) -> None:
        """Check that all keys are there; the error lists every one that is not."""
        missing = [key for key in keys if key not in self]
        if missing:
            raise ConfigError(f"{self.where}: missing: {', '.join(missing)}")

    def whole(
        self, key: str, default: Any = _MISSING, *, low: int = 1, high: int = MAX_SIZE
    ) -> int:
        """A whole number within closed bounds."""
        value = self._get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self.fail(key, f"must be a whole number from {low} to {high}, not {shown(value)}")
        return value

    def number(
        self, key: str, default: Any = _MISSING, *, low: float = 0.0, high: float = math.inf
    ) -> float:
        """A finite number strictly between two bounds."""
        value = self._get(key, default)
        is_number = type(value) in (int, float) and abs(value) < 1e300
        if not is_number or not low < value < high:
            raise self.fail(
                key, f"must be a number above {low:g} and below {high:g}, not {shown(value)}"
            )
        return float(value)

    def number_or(self, default: float, key: str) -> float:
        """A finite number above zero, or something else where there is none (or zero)."""
        return default if self.values.get(key) in (None, 0) else self.number(key)

    def flag(self, key: str, default: Any = _MISSING) -> bool:
        """A bool."""
        value = self._get(key, default)
        if type(value) is not bool:
            raise self.fail(key, f"must be true or false, not {shown(value)}")
        return value

    def text(self, key: str, default: Any = _MISSING) -> str:
        """A string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.fail(key, f"must be a string, not {shown(value)}")
        return value

    def token_id(self, key: str, n_tokens: int, default: int | None = None) -> int | None:
        """The id of a special token inside a vocabulary, or None."""
        if key not in self:
            return default
        value = self.values[key]
        if type(value) is not int or not 0 <= value < n_tokens:
            raise self.fail(key, f"is {shown(value)}, outside the vocabulary of {n_tokens} tokens")
        return value

    def token_ids(self, key: str, n_tokens: int) -> tuple[int, ...]:
        """One token id or a list of them."""
        value = self.values.get(key)
        if value is None:
            return ()
        items = value if isinstance(value, list) else [value]
        if len(items) > 1024:
            raise self.fail(key, f"lists {len(items)} ids; at most 1024 are accepted")
        for item in items:
            if type(item) is not int or not 0 <= item < n_tokens:
                raise self.fail(
                    key, f"has {shown(item)}, outside the vocabulary of {n_tokens} tokens"
                )
        return tuple(items)
