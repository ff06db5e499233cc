"""Engines on the hash model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hash_model import BASE, HashBackend, HashModel

from rllama.engine.engine import Engine

MakeEngine = Callable[..., Engine]


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    """Make engines on the hash model; closed at the end of the test."""
    engines: list[Engine] = []

    def make(model: HashModel | None = None, tokenizer: object = None, **changes: object) -> Engine:
        config = replace(BASE, **changes)  # type: ignore[arg-type]
        engine = Engine(model or HashModel(), tokenizer, config, HashBackend())  # type: ignore[arg-type]
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()
