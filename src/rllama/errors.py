"""Every exception that rllama raises on purpose: one line, with what, where and what to do."""

from __future__ import annotations


class RllamaError(Exception):
    """Root of every error of this package; `exit_code` is what the command line returns."""

    exit_code = 1


class FormatError(RllamaError, ValueError):
    """A file is damaged, truncated, or says things that contradict each other."""


class UnsafeFileError(FormatError):
    """A file asks for something that is refused on principle (code, a path outside its folder)."""


class UnsupportedError(RllamaError):
    """Well-formed, but not something this version can do: an architecture, a dtype, an op."""


class ConfigError(RllamaError, ValueError):
    """Options or model numbers that contradict each other or are out of range."""

    exit_code = 2  # the loader sets 1 where it was a file that said so


class ShapeError(RllamaError, ValueError):
    """Wrong shape, dtype or contiguity at a kernel boundary."""


class TemplateError(RllamaError, ValueError):
    """A chat template is missing, broken, or over its limits."""


class MemoryPlanError(RllamaError, MemoryError):
    """What is asked for does not fit into the memory that this process may use."""


class BackendError(RllamaError, RuntimeError):
    """A device or a native part failed."""


class ContextFullError(RllamaError, ValueError):
    """A prompt is longer than the context."""


class EngineClosedError(RllamaError, RuntimeError):
    """The engine was closed, or closed while a request was running."""


class OverloadedError(RllamaError, RuntimeError):
    """The queue is full; try again later."""
