"""The compiled kernels."""

from rllama._kernels import core

__all__ = ["core"]
