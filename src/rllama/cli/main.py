"""`rllama`: a first word without a dash is a command; without one it is `run`."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from importlib import import_module

import rllama
from rllama._identity import require_ours
from rllama.cli import exit_codes
from rllama.cli.args import Parser, UsageError
from rllama.cli.output import complain
from rllama.errors import RllamaError

# command -> what it does; its module under rllama.cli has `add_flags(parser, positional=...)`
# and `run(options)`
COMMANDS = {
    "run": "continue a prompt (what `rllama --prompt ...` does as well)",
    "inspect": "show what is in a model file, or with --cpu what this machine can do",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command line; the exit code.

    Notes:   0 done, 2 wrong usage, 1 any other error, 130 Ctrl-C, 141 nobody reads stdout
    """
    if argv is None:  # a process of ours: numpy's own threads would only spin beside the kernels
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        exit_code = _dispatch(sys.argv[1:] if argv is None else argv)
    except SystemExit as stop:  # argparse, after --help and --version
        exit_code = stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        exit_code = exit_codes.INTERRUPTED
    except Exception as error:
        exit_code = _explain(error)
    exit_code = _flush(exit_code)
    if argv is None and exit_code in (exit_codes.INTERRUPTED, exit_codes.PIPE_CLOSED):
        # The engine may be in a long step, which nobody wants to wait for any more.
        os._exit(exit_code)
    return exit_code


def _dispatch(argv: list[str]) -> int:
    require_ours(rllama)
    if not argv:
        _parser("run", plain=True).print_help(sys.stderr)
        return exit_codes.USAGE
    plain = argv[0].startswith("-")
    command = "run" if plain else argv[0]
    if command not in COMMANDS:
        raise UsageError(_unknown(command))
    parser = _parser(command, plain=plain)
    options = parser.parse_args(argv if plain else argv[1:])
    exit_code: int = import_module(f"rllama.cli.{command}").run(options)
    return exit_code


def _parser(command: str, *, plain: bool) -> Parser:
    """The parser of a command; `plain` is `rllama` itself, which runs a prompt."""
    if plain:
        lines = [f"  {name:10} {text}" for name, text in COMMANDS.items()]
        parser = Parser(
            prog="rllama",
            usage="rllama [options]\n       rllama COMMAND [options]",
            description=f"{rllama.__doc__}".partition(":")[0] + ".",
            epilog="commands (each has its own --help):\n" + "\n".join(lines),
        )
        version = f"rllama {rllama.__version__}"
        parser.add_argument("--version", action="version", version=version)
    else:
        parser = Parser(prog=f"rllama {command}", description=_sentence(COMMANDS[command]))
    import_module(f"rllama.cli.{command}").add_flags(parser, positional=not plain)
    return parser


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _unknown(command: str) -> str:
    if os.path.exists(command):
        return f"{command!r} is no command; to run a model: rllama --model-path {command}"
    near = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}"
    return f"{command!r} is no command; {hint}"


def _explain(error: Exception) -> int:
    """Say in one line what went wrong; the exit code."""
    if os.environ.get("RLLAMA_DEBUG_TRACEBACK"):
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        return exit_codes.PIPE_CLOSED
    if isinstance(error, (RllamaError, UsageError)):
        complain(str(error))
        return error.exit_code
    if isinstance(error, MemoryError):
        hint = f": {error}; a smaller --max-seq-len takes less" if str(error) else ""
        complain(f"not enough memory{hint}")
    elif isinstance(error, OSError) and error.strerror:
        complain(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    elif isinstance(error, (OSError, ImportError)):
        complain(str(error))
    else:
        what = f"{type(error).__name__}: {error}"
        complain(f"internal error: {what} (RLLAMA_DEBUG_TRACEBACK=1 shows where)")
    return exit_codes.FAILED


def _flush(exit_code: int) -> int:
    """Write out what stdout still holds, or see to it that nobody tries again."""
    if sys.stdout is None:
        return exit_code
    try:
        sys.stdout.flush()
    except OSError as error:
        # The interpreter flushes once more at its end and would complain in its own way.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_code or _explain(error)
    return exit_code
