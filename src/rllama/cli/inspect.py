"""`rllama inspect`: what is in a model file, or what this machine can do."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from rllama.cli import exit_codes
from rllama.cli.args import Parser, UsageError, add_model_flags, model_path
from rllama.cli.output import standard_output

_EXPERT = re.compile(r"\.experts\.[0-9]+\.")


def add_flags(parser: Parser, *, positional: bool) -> None:
    """The options of `inspect`."""
    parser.add_argument("--cpu", action="store_true", help="instruction sets and threads instead")
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_model_flags(parser, positional=positional)


def run(options: argparse.Namespace) -> int:
    """Print the report; exit code 0."""
    path = model_path(options)
    if options.cpu and path is not None:
        raise UsageError("--cpu is about this machine; leave out the model")
    report = _cpu_report() if options.cpu else _file_report(path, options)
    out = standard_output()
    if options.json:
        out.write(json.dumps(report, indent=2) + "\n")
    else:
        out.write(_cpu_text(report) if options.cpu else _file_text(report))
    return exit_codes.DONE


def _cpu_report() -> dict[str, Any]:
    from rllama.tools.inspect_cpu import inspect_cpu

    return inspect_cpu()


def _file_report(path: str | None, options: argparse.Namespace) -> dict[str, Any]:
    from rllama.tools.inspect_file import inspect_file

    return inspect_file(
        path,
        param_path=options.param_path,
        tokenizer_path=options.tokenizer_path,
    )


def _cpu_text(report: dict[str, Any]) -> str:
    threads = report["threads"]
    lines = [f"cpu       {report['cpu']}", f"{'level':14}compiled  usable"]
    for level in report["levels"]:
        mark = "  <- chosen" if level["name"] == report["chosen"] else ""
        lines.append(
            f"  {level['name']:12}{_yes(level['compiled']):10}{_yes(level['usable'])}{mark}"
        )
    lines.append(f"chosen    {report['chosen']} ({report['chosen_because']})")
    lines.append(f"threads   {threads['count']} of {report['parallel']} ({threads['because']})")
    if threads["note"]:
        lines.append(f"note      {threads['note']}")
    return "\n".join(lines) + "\n"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _file_text(report: dict[str, Any]) -> str:
    lines = [f"{report['path']}: {report['format']}", ""]
    if report["problem"]:
        lines += _table("problem", {"": report["problem"]})
    lines += _table("config", report["config"] or {"": "none"})
    lines += _table("tokenizer", report["tokenizer"])
    lines.append("types")
    for name, entry in report["types"].items():
        lines.append(f"  {name:8} {entry['tensors']:6} tensors {entry['bytes']:>16,} bytes")
    total = report["total"]
    lines.append(
        f"  {'all':8} {total['tensors']:6} tensors {total['bytes']:>16,} bytes, "
        f"{total['parameters']:,} parameters"
    )
    lines += ["", "tensors"]
    for tensor in _experts_as_one(report["tensors"]):
        shape = " x ".join(map(str, tensor["shape"]))
        lines.append(
            f"  {tensor['name']:28} {tensor['type']:7} {shape:16} {tensor['bytes']:>13,}  "
            f"{tensor['origin'].removeprefix(report['path'] + ':')}"
        )
    lines.append("")
    lines += _table("metadata", report["metadata"])
    return "\n".join(lines).rstrip() + "\n"


def _experts_as_one(tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tensors, those of equal experts of a layer as one line: a file may have 20,000."""
    lines: dict[tuple[str, ...], dict[str, Any]] = {}
    for tensor in tensors:
        name, n = _EXPERT.subn(".experts.{e}.", tensor["name"])
        key = (name, tensor["type"], str(tensor["shape"])) if n else (tensor["name"],)
        if key not in lines:
            lines[key] = {**tensor, "n": 1}
            continue
        line = lines[key]
        line["n"] += 1
        line["bytes"] += tensor["bytes"]
        line["name"] = f"{name.replace('{e}', '*')} x{line['n']}"
    return list(lines.values())


def _table(title: str, entries: dict[str, Any]) -> list[str]:
    width = max((len(name) for name in entries), default=0)
    return [title, *(f"  {name:{width}}  {_shown(value)}" for name, value in entries.items()), ""]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    text = text.replace("\n", "\\n")
    return text if len(text) <= 160 else text[:157] + "..."
