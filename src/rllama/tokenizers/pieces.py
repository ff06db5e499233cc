"""What each token id shows."""

from __future__ import annotations

from collections.abc import Callable

from rllama.errors import ConfigError


class PieceTable(dict[int, bytes]):
    """The bytes of each id, computed when first asked for."""

    def __init__(self, shown: Callable[[int], bytes], vocab_size: int) -> None:
        super().__init__()
        self._shown, self._vocab_size = shown, vocab_size

    def __missing__(self, token_id: int) -> bytes:
        if not 0 <= token_id < self._vocab_size:
            raise ConfigError(f"token id {token_id} is outside the vocabulary of "
                              f"{self._vocab_size}")  # fmt: skip
        self[token_id] = shown = self._shown(token_id)
        return shown
