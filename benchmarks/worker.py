"""A worker process of a comparison: loads a model once, then runs workloads on request.

Requests and replies are JSON lines on the pipes that were standard input and output. Between
requests the worker blocks in a read, so the other side has the machine to itself.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, Protocol


class Side(Protocol):
    """One engine behind the pipe.

    Notes: `variants` are settings among which the better figure counts; `run` returns seconds
    """

    def variants(self, n_seqs: int) -> list[str]: ...
    def run(
        self, prompts: Sequence[Sequence[int]], n_steps: int, *, variant: str, keep: bool
    ) -> float: ...
    def keep_only(self, variants: Sequence[str]) -> None: ...
    def about(self) -> dict[str, Any]: ...


def serve(side: Side) -> None:
    """Answer requests until the driver closes the pipe. Whatever prints goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _reply(replies, side.about())
    for line in sys.stdin:
        try:
            answer = _answer(side, json.loads(line))
        except Exception as error:  # the driver must hear of it, whatever it is
            answer = {"error": f"{type(error).__name__}: {error}"}
        _reply(replies, answer)


def _reply(replies: Any, answer: dict[str, Any]) -> None:
    replies.write(json.dumps(answer) + "\n")
    replies.flush()


def _answer(side: Side, request: dict[str, Any]) -> dict[str, Any]:
    op = request.pop("op")
    if op == "variants":
        return {"variants": side.variants(request["n_seqs"])}
    if op == "keep_only":
        side.keep_only(request["variants"])
        return {}
    return {"seconds": side.run(request.pop("prompts"), request.pop("n_steps"), **request)}
