"""A CPU-first engine for Llama-family language models: `from rllama import LLM, SamplingParams`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from rllama._identity import check_package

if TYPE_CHECKING:
    from rllama.config import SamplingParams as SamplingParams
    from rllama.errors import RllamaError as RllamaError
    from rllama.llm import LLM as LLM
    from rllama.llm import Completion as Completion
    from rllama.llm import CompletionStats as CompletionStats
    from rllama.llm import Piece as Piece
    from rllama.loader import load_tokenizer as load_tokenizer

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "Completion",
    "CompletionStats",
    "Piece",
    "RllamaError",
    "SamplingParams",
    "__version__",
    "load_tokenizer",
]

# Public name -> the module that it comes from once it is asked for: importing rllama is cheap.
_HOMES = {
    "LLM": "rllama.llm",
    "Completion": "rllama.llm",
    "CompletionStats": "rllama.llm",
    "Piece": "rllama.llm",
    "RllamaError": "rllama.errors",
    "SamplingParams": "rllama.config",
    "load_tokenizer": "rllama.loader",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())
check_package(__file__, __version__)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
