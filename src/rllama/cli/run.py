"""`rllama run`: continue one prompt, streamed."""

from __future__ import annotations

import argparse
import signal
from typing import TYPE_CHECKING

from rllama.cli import exit_codes
from rllama.cli.args import (
    Parser,
    add_chat_flags,
    add_engine_flags,
    add_llama2c_flags,
    add_model_flags,
    add_sampling_flags,
    check_chat_flags,
    model_path,
    sampling_params,
)
from rllama.cli.output import TextOut, note, show_warnings, standard_output
from rllama.cli.progress import Progress
from rllama.cli.prompt import read_prompt
from rllama.cli.stats import PeakMemory, banner, stats_line

if TYPE_CHECKING:
    from rllama.config import SamplingParams
    from rllama.engine.stream import Stream
    from rllama.llm import LLM


def add_flags(parser: Parser, *, positional: bool) -> None:
    """The options of `run`; without a MODEL argument they are also those of plain `rllama`."""
    group = parser.add_argument_group("prompt and output")
    source = group.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT", help="the text to continue; - reads stdin")
    source.add_argument(
        "--prompt-file", metavar="PATH", help="a file with the text to continue; - reads stdin"
    )
    special_help = "names of special tokens in the prompt are these tokens, not text"
    group.add_argument("--parse-special", action="store_true", help=special_help)
    add_chat_flags(group)
    group.add_argument("--no-echo", action="store_true", help="leave the prompt out of the output")
    group.add_argument("-q", "--quiet", action="store_true", help="nothing on stderr but errors")
    add_model_flags(parser, positional=positional)
    add_sampling_flags(parser)
    add_engine_flags(parser)
    parser.set_defaults(steps=None)
    if positional:
        source.add_argument("-i", dest="prompt", metavar="TEXT", help="the same as --prompt")
        add_llama2c_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Print the prompt and its continuation; exit code 0, or 130 after Ctrl-C."""
    check_chat_flags(options)
    path, params = model_path(options), sampling_params(options)
    prompt = read_prompt(options)
    out = standard_output()
    if not options.quiet:
        show_warnings()
    llm = _load(options, path)
    if options.steps:
        n_new = options.steps - len(
            llm.tokenize(prompt, add_bos=False, parse_special=options.parse_special)
        )
        params = params.with_(max_new_tokens=max(0, n_new))
    watch = _Watch(shown=not options.quiet)
    stream = _start(llm, prompt, params, watch, options, colour=out.colour)
    if not options.quiet:
        note(banner(llm))
    if not (options.no_echo or options.chat):
        out.write(prompt)
    exit_code = _write(stream, out, watch)
    if not options.quiet:
        note(stats_line(llm, stream.stats, watch.peak))
    if exit_code == exit_codes.DONE:
        llm.close()
    return exit_code


def _start(
    llm: LLM,
    prompt: str,
    params: SamplingParams,
    watch: _Watch,
    options: argparse.Namespace,
    *,
    colour: bool,
) -> Stream:
    if not options.chat:
        ids = _prompt_ids(llm, prompt, options)
        return llm.stream(ids, params, with_probability=colour, on_prefill=watch.prefill)
    messages = [{"role": "user", "content": prompt}]
    if options.system is not None:
        messages.insert(0, {"role": "system", "content": options.system})
    return llm.chat(
        messages,
        params,
        template_kwargs=options.template_kwargs,
        stream=True,
        with_probability=colour,
        on_prefill=watch.prefill,
    )


def _prompt_ids(llm: LLM, prompt: str, options: argparse.Namespace) -> list[int]:
    """The tokens of a prompt; BOS once, also where the prompt names it."""
    special = llm.tokenize(prompt, False, parse_special=True)
    tokenizer = llm.tokenizer
    assert tokenizer is not None  # or there would have been an error
    if options.parse_special:
        has_bos = bool(special) and special[0] == tokenizer.bos_token_id
        return special if has_bos else llm.tokenize(prompt, None, parse_special=True)
    names = (tokenizer.token_text(i) for i in special if tokenizer.is_special(i))
    name = next((name for name in names if name and name in prompt), None)
    if name is not None and not options.quiet:
        note(f"{name} in the prompt is text; with --parse-special it is the special token")
    return llm.tokenize(prompt, None)


class _Watch:
    """Sees the prompt and the output go by: a progress bar, and the peak of memory."""

    def __init__(self, *, shown: bool) -> None:
        self.peak = PeakMemory()
        self.bar = Progress("reading the prompt", " tok", shown=shown)

    def prefill(self, done: int, total: int) -> None:
        self.peak.sample()
        self.bar(done, total)


def _write(stream: Stream, out: TextOut, watch: _Watch) -> int:
    """Write the pieces as they come, and the newline that ends them; the exit code."""
    exit_code = exit_codes.DONE
    try:
        for piece in stream:
            watch.peak.sample()
            out.write(piece, piece.probability)
    except KeyboardInterrupt:
        # The text so far stays; a second Ctrl-C ends us on the spot.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        exit_code = exit_codes.INTERRUPTED
    finally:
        watch.bar.close()
        stream.close()
    out.write("\n")
    return exit_code


def _load(options: argparse.Namespace, path: str | None) -> LLM:
    from rllama.llm import LLM

    progress = Progress("loading", "B", shown=not options.quiet)
    try:
        return LLM(
            path,
            tokenizer_path=options.tokenizer_path,
            param_path=options.param_path,
            f16=options.f16,
            quantize=options.quantize,
            isa=options.isa,
            n_threads=options.max_threads,
            max_seq_len=options.max_seq_len,
            kv_dtype=options.kv_dtype,
            max_batch_tokens=options.max_batch_tokens,
            max_seqs=1,
            chat_template=options.chat_template,
            on_load=progress,
        )
    finally:
        progress.close()
