"""The prompt: from the command line, a file, or standard input."""

from __future__ import annotations

import argparse
import os
import sys
from typing import BinaryIO

from rllama.cli.args import UsageError, check_path
from rllama.errors import FormatError

_LIMIT_BYTES = 64 << 20  # no context holds more


def read_prompt(options: argparse.Namespace) -> str:
    """The prompt that the options name; nothing at all is the empty prompt.

    Notes:   of a file and of standard input, one final newline and a byte order mark are left out
    Raises:  UsageError, FormatError
    """
    if "-" in (options.prompt, options.prompt_file):
        return _standard_input()
    if options.prompt_file is not None:
        check_path(options.prompt_file)
        try:
            with open(options.prompt_file, "rb") as file:
                return _text_of(file, options.prompt_file)
        except OSError as error:
            raise FormatError(f"{options.prompt_file}: {os.strerror(error.errno or 0)}") from error
    prompt: str = options.prompt or ""
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt is not UTF-8 at character {error.start}") from None
    return prompt


def _standard_input() -> str:
    if sys.stdin is None:
        raise UsageError("no prompt: standard input is closed")
    try:
        return _text_of(sys.stdin.buffer, "standard input")
    except OSError as error:
        raise FormatError(f"standard input: {error.strerror or error}") from error


def _text_of(stream: BinaryIO, where: str) -> str:
    data = stream.read(_LIMIT_BYTES + 1)
    if len(data) > _LIMIT_BYTES:
        raise FormatError(f"{where}: more than {_LIMIT_BYTES >> 20} MiB are too much for a prompt")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: not UTF-8 at offset {error.start}") from None
    return text.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")
