"""The flags: one function per group, each option described once."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from rllama.cli import exit_codes
from rllama.config import KVDType, SamplingParams, field_help

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


class Parser(argparse.ArgumentParser):
    """An argument parser that never guesses abbreviations and complains in one line."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_help_formatter, **kwargs)

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        # argparse's own swallows what goes wrong, so that a closed pipe would look like success.
        if file is not None:
            file.write(message)

    def error(self, message: str) -> NoReturn:
        hint = _meant(message, self._option_string_actions)
        raise UsageError(f"{message}{hint} (`{self.prog} --help` lists the options)")


# What other engines call an option -> what it is called here.
_ELSEWHERE = {
    "-m": "--model-path",
    "--model": "--model-path",
    "-p": "--prompt",
    "-f": "--prompt-file",
    "--file": "--prompt-file",
    "-n": "--max-new-tokens",
    "--n-predict": "--max-new-tokens",
    "--predict": "--max-new-tokens",
    "--max-tokens": "--max-new-tokens",
    "--threads": "--max-threads",
    "-c": "--max-seq-len",
    "--ctx-size": "--max-seq-len",
    "--max-model-len": "--max-seq-len",
    "--temp": "--temperature",
    "--repeat-penalty": "--repetition-penalty",
    "-s": "--seed",
    "-sys": "--system",
    "--system-prompt": "--system",
    "--special": "--parse-special",
    "--jinja": "--chat",
    "-cnv": "--chat",
}


def _meant(message: str, known: Container[str]) -> str:
    """The options that were meant by unknown ones, as a question."""
    if not message.startswith("unrecognized arguments: "):
        return ""
    words = [word.partition("=")[0] for word in message.split()]
    meant = [_ELSEWHERE[word] for word in words if word in _ELSEWHERE]
    names = [name for name in dict.fromkeys(meant) if name in known]
    return f"; did you mean {', '.join(names)}?" if names else ""


class UsageError(Exception):
    """The command line itself is wrong."""

    exit_code = exit_codes.USAGE


def _help_formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=34)


def whole(text: str) -> int:
    """A whole number, written in digits."""
    digits = text[1:] if text[:1] in "+-" else text
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 30):
        raise argparse.ArgumentTypeError(f"{_shown(text)} is not a whole number")
    return int(text)


def count(text: str) -> int:
    """A whole number from 1 to 2^31 - 1."""
    value = whole(text)
    if not 1 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"{_shown(text)} is not between 1 and {2**31 - 1}")
    return value


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{_shown(text)} is not a JSON object")
    return value


def number(text: str) -> float:
    """A number; whether it is in range is for its owner to say."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{_shown(text)} is not a number") from None


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:37] + "...")


# field of SamplingParams -> how to read it, what stands for it, its default in words
_SAMPLING_FLAGS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "temperature": (number, "X", "the model's own, else 1.0"),
    "top_k": (whole, "N", "the model's own, else 20"),
    "top_p": (number, "X", "the model's own, else 1.0"),
    "min_p": (number, "X", "the model's own, else 0"),
    "repetition_penalty": (number, "X", "the model's own, else 1.0"),
    "seed": (whole, "N", "a new one each time"),
    "max_new_tokens": (whole, "N", "to the end of the context"),
}


@dataclass(frozen=True, slots=True)
class Flag:
    """One option that takes a value: its name, what stands for the value, what it means."""

    name: str
    metavar: str
    help: str
    type: Callable[[str], Any] = str
    default: Any = None
    choices: tuple[str, ...] | None = None

    def add_to(self, group: argparse._ActionsContainer) -> None:
        group.add_argument(
            self.name,
            metavar=self.metavar,
            help=self.help,
            type=self.type,
            default=self.default,
            choices=self.choices,
        )


_MODEL_FLAGS = (
    Flag("--model-path", "PATH", "a file or a directory (default: the embedded story model)"),
    Flag("--tokenizer-path", "PATH", "the tokenizer, where it is not found beside the model"),
    Flag("--param-path", "PATH", "the model's numbers, where they are not found beside it"),
)
_CHAT_FLAG = Flag(
    "--chat-template",
    "NAME",
    "how --chat writes a conversation: a file, one of the model's templates by its name, or "
    "chatml, gemma, llama2, llama3, mistral, vicuna (default: the model's own)",
)
_CONVERSATION_FLAGS = (
    Flag("--system", "TEXT", "a system message before --chat's"),
    Flag(
        "--template-kwargs",
        "JSON",
        "variables for the chat template, such as '{\"enable_thinking\": false}'",
        json_object,
    ),
)
_ENGINE_FLAGS = (
    Flag(
        "--quantize",
        "KIND",
        "quantise float weights while loading: q8_0, q4_0, q4_k, int8, int4, 8da4w, or torchchat's "
        "JSON as text or file",
    ),
    Flag(
        "--kv-dtype",
        "TYPE",
        "type of the cache: auto, f32, f16 or q8_0, 8 bits (default: auto, f32 beside F32 weights, "
        "else f16)",
        type=str.lower,
        default="auto",
        choices=get_args(KVDType),
    ),
    Flag("--max-seq-len", "N", "context, prompt included (default: as trained, if it fits)", count),
    Flag(
        "--max-batch-tokens",
        "N",
        "tokens per step, so per piece of prompt (default: 512)",
        count,
        512,
    ),
    Flag("--max-threads", "N", "threads (default: the cores that this process may use)", count),
    Flag("--isa", "LEVEL", "instruction set (default: the best that this CPU has)"),
)


def add_model_flags(parser: argparse.ArgumentParser, *, positional: bool) -> None:
    """Which model."""
    if positional:
        parser.add_argument("model", nargs="?", metavar="MODEL", help="the same as --model-path")
    group = parser.add_argument_group("model")
    for flag in _MODEL_FLAGS:
        flag.add_to(group)


def add_chat_flags(group: argparse._ActionsContainer) -> None:
    """Whether the prompt is a message, and how it is written down."""
    chat_help = "the prompt is a user's message, answered by way of the model's chat template"
    group.add_argument("--chat", action="store_true", help=chat_help)
    for flag in (_CHAT_FLAG, *_CONVERSATION_FLAGS):
        flag.add_to(group)


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """How the model runs here."""
    group = parser.add_argument_group("machine")
    group.add_argument("--f16", action="store_true", help="hold float weights and cache in 16 bits")
    for flag in _ENGINE_FLAGS:
        flag.add_to(group)


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """How the next token is chosen: the fields of SamplingParams."""
    group = parser.add_argument_group("sampling")
    texts = field_help(SamplingParams)
    for name, (convert, metavar, default) in _SAMPLING_FLAGS.items():
        flag = "--" + name.replace("_", "-")
        Flag(flag, metavar, f"{texts[name]} (default: {default})", convert).add_to(group)
    stop_help = "a text that ends the output and is cut off; may be repeated"
    group.add_argument("--stop", action="append", metavar="TEXT", help=stop_help)
    group.add_argument("--ignore-eos", action="store_true", help=texts["ignore_eos"])


def add_llama2c_flags(parser: argparse.ArgumentParser) -> None:
    """The letters that llama2.c's `run` has for some of the options."""
    group = parser.add_argument_group("as in llama2.c's run (also -i for the prompt)")
    for letter, name, (convert, metavar, _) in (
        ("-t", "temperature", _SAMPLING_FLAGS["temperature"]),
        ("-p", "top_p", _SAMPLING_FLAGS["top_p"]),
        ("-s", "seed", _SAMPLING_FLAGS["seed"]),
        ("-z", "tokenizer_path", (str, "PATH", "")),
        ("-n", "steps", (whole, "N", "")),
    ):
        same = f"the same as --{name.replace('_', '-')}"
        group.add_argument(
            letter,
            dest=name,
            type=convert,
            metavar=metavar,
            default=argparse.SUPPRESS,
            help="positions after BOS, the prompt's among them; 0: all"
            if name == "steps"
            else same,
        )


def sampling_params(options: argparse.Namespace) -> SamplingParams:
    """The sampling flags as they were given. Raises ConfigError for values out of range."""
    given = {name: getattr(options, name) for name in _SAMPLING_FLAGS}
    if options.steps is not None and (options.steps < 0 or options.max_new_tokens is not None):
        raise UsageError("-n is a count from 0, and excludes --max-new-tokens")
    stop = tuple(options.stop) if options.stop else None
    return SamplingParams(**given, stop=stop, ignore_eos=options.ignore_eos or None)


def check_chat_flags(options: argparse.Namespace) -> None:
    """Raises UsageError for flags of conversations without --chat, and the other way round."""
    if options.chat:
        if options.prompt is None and options.prompt_file is None:
            raise UsageError(
                "--chat needs a message: --prompt TEXT, --prompt-file PATH or --prompt -"
            )
        if options.parse_special:
            raise UsageError("--parse-special is for prompts; a chat template needs no such flag")
    elif options.system is not None or options.template_kwargs is not None:
        raise UsageError("--system and --template-kwargs are for --chat")


def model_path(options: argparse.Namespace) -> str | None:
    """The model that was named, in either way. Raises UsageError for two different ones."""
    first: str | None = getattr(options, "model", None)
    if first is not None and options.model_path is not None and first != options.model_path:
        raise UsageError("MODEL and --model-path name two different models")
    path: str | None = first if first is not None else options.model_path
    if path is not None:
        check_path(path)
    return path


def check_path(path: str) -> None:
    """Raises UsageError for what can be no path at all."""
    if not path:
        raise UsageError("the path is empty")
    try:
        os.fsencode(path)
    except UnicodeError:
        raise UsageError("the path has characters that this locale cannot write") from None
