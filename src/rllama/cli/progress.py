"""A progress bar on stderr: only on a terminal, and only for what takes long."""

from __future__ import annotations

import sys
import time
from typing import Any

_DELAY_S = 0.5


class Progress:
    """Shows how far something is, once it has taken half a second.

    Units: done and total in `unit`
    """

    def __init__(self, label: str, unit: str, *, shown: bool) -> None:
        self._label, self._unit = label, unit
        self._shown = shown and sys.stderr is not None and sys.stderr.isatty()
        self._start = time.monotonic()
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if not self._shown:
            return
        if self._bar is None:
            if time.monotonic() - self._start < _DELAY_S or done >= total:
                return
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self._label,
                total=total,
                initial=done,
                unit=self._unit,
                unit_scale=True,
                leave=False,
                file=sys.stderr,
            )
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._shown = False
