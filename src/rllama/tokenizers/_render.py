"""Renders chat templates in a process of its own. A script, run by template_process.py.

A template is a program that a stranger wrote. Jinja's sandbox keeps it from the interpreter, but
not from using all time and memory there is; that is for the operating system to stop, and it can
stop only a process. So nothing of rllama is imported here, and nothing here is worth keeping.

One JSON object per line comes in and goes out. The first line in is `sys.path`.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

MEMORY_BYTES = 64 << 20  # beyond what the interpreter and the request themselves take
CPU_S = 1.0


def main() -> None:
    """Answer requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to act on
    sys.path[:] = json.loads(sys.stdin.buffer.readline())
    try:
        compile_template = make_compiler()
    except ImportError as error:
        compile_template = None
        missing = str(error)
    compiled: dict[str, Any] = {}
    for line in sys.stdin.buffer:
        if compile_template is None:
            answer = {"error": "missing", "message": missing}
        else:
            answer = render(json.loads(line), len(line), compiled, compile_template)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def render(
    request: dict[str, Any],
    n_bytes: int,
    compiled: dict[str, Any],
    compile_template: Callable[[str], Any],
) -> dict[str, str]:
    """The text of one request, or what went wrong, within the limits of time and memory."""
    import jinja2

    source, limit = request["source"], request["output_limit"]
    with Limits(MEMORY_BYTES + 16 * n_bytes):
        try:
            if source not in compiled:
                if len(compiled) > 8:
                    compiled.clear()
                compiled[source] = compile_template(source)
            parts, size = [], 0
            for part in compiled[source].generate(**request["variables"]):
                parts.append(part)
                size += len(part)
                if size > limit:
                    return {"error": "limit", "message": f"more than {limit} characters come out"}
            return {"text": "".join(parts)}
        except (MemoryError, RecursionError) as error:
            what = "memory" if isinstance(error, MemoryError) else "depth"
            return {"error": "limit", "message": f"it uses too much {what}"}
        except jinja2.exceptions.SecurityError as error:
            return {"error": "unsafe", "message": str(error)}
        except Raised as error:
            return {"error": "raised", "message": str(error)}
        except jinja2.TemplateSyntaxError as error:
            return {"error": "broken", "message": f"line {error.lineno}: {error.message}"}
        except Exception as error:  # whatever a strange program runs into is its own fault
            return {"error": "broken", "message": f"{type(error).__name__}: {error}"}


class Raised(Exception):
    """What a template says by raise_exception."""


class Limits:
    """Processor time and memory of one request; the system ends the process that exceeds time."""

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes

    def __enter__(self) -> None:
        try:
            import resource
        except ImportError:  # Windows: the parent's clock alone
            return
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        used = _address_space_bytes()
        if used:
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (used + self.memory_bytes, hard))

    def __exit__(self, *_: object) -> None:
        try:
            import resource
        except ImportError:
            return
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _address_space_bytes() -> int:
    """What the process has mapped; 0 where the system does not tell."""
    import resource

    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def make_compiler() -> Callable[[str], Any]:
    """What compiles a template, in the environment that templates in the wild are written for.

    Notes: blocks are trimmed, loops have break and continue, `generation` marks nothing, `tojson`
           escapes nothing, and names that begin with an underscore are out of reach
    """
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja's own way

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_text")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _text(self, caller: Any) -> str:
            return str(caller())

    class Namespace(jinja2.utils.Namespace):
        def __init__(*args: Any, **values: Any) -> None:  # `self` may be a name of the template's
            own, given = args[0], dict(*args[1:], **values)
            for name in given:
                refuse_private(name)
            jinja2.utils.Namespace.__init__(own, given)

        def __setitem__(self, name: str, value: Any) -> None:
            refuse_private(name)
            super().__setitem__(name, value)

    def refuse_private(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"the name {name!r} begins with an underscore")

    def raise_exception(message: Any) -> None:
        raise Raised(message)

    def plain_dict(*args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            kind = type(obj).__name__
            raise jinja2.exceptions.SecurityError(f"the attribute {attribute!r} of a {kind}")

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals.update(
        raise_exception=raise_exception, strftime_now=strftime_now, dict=plain_dict,
        namespace=Namespace,
    )  # fmt: skip
    del environment.globals["lipsum"]
    return environment.from_string


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON as templates expect it: nothing is escaped for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def strftime_now(form: str) -> str:
    """The local time in a form of strftime."""
    return datetime.now().strftime(form)


if __name__ == "__main__":
    main()
