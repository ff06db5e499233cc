from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rllama.errors import ConfigError, TemplateError
from rllama.tokenizers.template import ChatTemplate

USER = [{"role": "user", "content": "Hello"}]
BODY = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture
def render() -> Iterator[Any]:
    made: list[ChatTemplate] = []

    def run(source: str, messages: Any = USER, **options: Any) -> str:
        made.append(ChatTemplate({"default": source}, {"bos_token": "<s>", "eos_token": "</s>"}))
        return made[-1].render(messages, **options)

    yield run
    for template in made:
        template.close()


@pytest.mark.parametrize(
    ("source", "want"),
    [
        (BODY, "user: Hello\n"),
        ("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}", "<s>Hello</s>"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "Hello"}]'),
        ('{{ {"a": "<é>"} | tojson(indent=2) }}', '{\n  "a": "<é>"\n}'),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        (
            "{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
            "02",
        ),
        ("a{% generation %}b{% endgeneration %}c", "abc"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "2"),
        ("x{{ strftime_now('%%') }}{{ nowhere }}", "x%"),
        ("{{ dict(a=1).a }}{{ add_generation_prompt }}{{ tools is none }}", "1TrueTrue"),
        ("  {% if true %}\n  yes\n  {% endif %}\n", "  yes\n"),
        ("{{ '  x '.strip() }}{{ ' a b'.split() | join('-') }}{{ 'x' * 3 }}", "xa-bxxx"),
    ],
)
def test_template_uses_what_templates_in_the_wild_use(render: Any, source: str, want: str) -> None:
    assert render(source) == want


def test_template_gets_tools_and_kwargs(render: Any) -> None:
    source = "{{ tools[0].name }} {{ thinking }} {{ documents is none }}"
    got = render(source, tools=[{"name": "add"}], template_kwargs={"thinking": False})
    assert got == "add False True"


def test_template_continues_the_last_message(render: Any) -> None:
    chat = [*USER, {"role": "assistant", "content": "Good "}]
    got = render(BODY, chat, add_generation_prompt=False, continue_final_message=True)
    assert got == "user: Hello\nassistant: Good "
    trimmed = BODY.replace("m.content", "m.content | trim")
    got = render(trimmed, chat, add_generation_prompt=False, continue_final_message=True)
    assert got == "user: Hello\nassistant: Good"


def test_template_is_chosen_by_what_is_there() -> None:
    both = ChatTemplate({"default": "plain", "tool_use": "tools"}, {})
    assert both.render(USER) == "plain"
    assert both.render(USER, tools=[{"name": "f"}]) == "tools"
    with pytest.raises(TemplateError, match=r"none of the templates is the default one.*rag, x"):
        ChatTemplate({"rag": "1", "x": "2"}, {}).render(USER)
    both.close()


# Templates of strangers: what they try, and what the error says of it.
HOSTILE = {
    "class chain": ("{{ ''.__class__.__mro__ }}", "may not touch|does not work"),
    "globals chain": ("{{ cycler.__init__.__globals__.os.system('true') }}", "may not touch"),
    "joiner chain": ("{{ joiner.__init__.__globals__ }}", "may not touch"),
    "lipsum": ("{{ lipsum.__globals__ }}", "does not work"),
    "self": ("{{ self.__init__.__globals__ }}", "may not touch|does not work"),
    "request": ("{{ request.application.x }}", "does not work"),
    "attr filter": ("{{ ''|attr('__class__')|attr('__mro__') }}", "may not touch|does not work"),
    "map attr": ("{{ ['']|map('attr', '__class__')|list }}", "may not touch|does not work"),
    "map attribute": ("{{ ['']|map(attribute='__class__')|list|length > 5 }}{{ 1/0 }}", "."),
    "format class": ("{{ '{0.__class__.__mro__}'.format('') }}", "may not touch"),
    "format variable": ("{% set f = '{0.__class__}'.format %}{{ f('') }}", "may not touch"),
    "format attr": ("{{ ('{0.__class__}'|attr('format'))('') }}", "may not touch"),
    "format map": ("{{ '{a.__class__}'.format_map({'a': ''}) }}", "may not touch"),
    "private namespace": ("{% set ns = namespace(__class__=1) %}", "may not touch"),
    "raise attribute": ("{{ raise_exception.__globals__ }}", "may not touch"),
    "include": ("{% include '/etc/passwd' %}", "does not work"),
    "import": ("{% import '/etc/passwd' as x %}", "does not work"),
    "extends": ("{% extends 'base' %}", "does not work"),
    "mutation": ("{{ messages.append(1) }}", "may not touch"),
    "clear": ("{{ messages[0].clear() }}", "may not touch"),
    "long range": ("{{ range(10**9)|list }}", "."),
    "nested loops": ("{% for a in range(9999) %}" * 4 + "{% endfor %}" * 4, "too much time"),
    "busy loop": ("{% for a in range(99999) %}{% for b in range(99999) %}{% if a == b %}"
                  "{% endif %}{% endfor %}{% endfor %}", "too much time"),
    "long string": ("{{ 'a' * 10**10 }}", "too much memory"),
    "long string in pieces": ("{% for i in range(99999) %}{{ 'a' * 100000 }}{% endfor %}",
                              "limits"),
    "center": ("{{ 'a'.center(10**9) }}", "too much memory"),
    "center filter": ("{{ 'a'|center(10**9) }}", "too much memory"),
    "indent": ("{{ 'a\\na'|indent(10**9) }}", "too much memory"),
    "printf": ("{{ '%0999999999d' % 1 }}", "too much memory"),
    "printf filter": ("{{ '%0999999999d'|format(1) }}", "too much memory"),
    "f-string width": ("{{ '{:0999999999d}'.format(1) }}", "too much memory"),
    "power tower": ("{{ 9**(9**9) }}", "too much (time|memory)"),
    "list doubling": ("{% set n = namespace(l=[1]) %}{% for i in range(60) %}"
                      "{% set n.l = n.l + n.l %}{% endfor %}", "too much memory"),
    "string doubling": ("{% set n = namespace(s='aa') %}{% for i in range(60) %}"
                        "{% set n.s = n.s ~ n.s %}{% endfor %}", "too much memory"),
    "strftime": ("{{ strftime_now('%0999999999d') }}", "."),
    "indented json": ("{{ messages|tojson(indent=10**9) }}", "too much memory"),
    "macro recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "too much depth"),
    "call recursion": ("{% macro f() %}{{ caller() }}{% call f() %}{% endcall %}{% endmacro %}"
                       "{% call f() %}{% endcall %}", "too much depth"),
    "recursive loop": ("{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
                       "too much depth"),
    "parentheses": ("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}", "."),
    "ifs": ("{% if 1 %}" * 50_000 + "{% endif %}" * 50_000, "."),
    "too long": ("x" * (1 << 20) + "x", "too long"),
    "syntax": ("{% for %}", "line 1"),
    "unknown tag": ("{% frobnicate %}", "does not work: line 1"),
    "unknown filter": ("{{ 1|frobnicate }}", "does not work: line 1"),
    "unclosed": ("{{ messages", "does not work"),
    "raises": ("{{ raise_exception('only\\n two roles') }}", "refuses this conversation: only two"),
    "raises at length": ("{{ raise_exception('x' * 100000) }}", "x{1000}"),
    "undefined attribute": ("{{ nowhere.x }}", "does not work: UndefinedError"),
    "division": ("{{ 1 // 0 }}", "does not work: ZeroDivisionError"),
    "nothing": ("{# nothing #}", "renders nothing"),
    "spaces": (" \n ", "renders nothing"),
    "exit": ("{{ raise_exception.__self__.exit() }}", "may not touch|does not work"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "words"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_template_gets_one_line(render: Any, source: str, words: str) -> None:
    start = time.monotonic()
    with pytest.raises(TemplateError, match=words) as error:
        render(source)
    message = str(error.value)
    assert message.startswith("chat template 'default': ") or "too long" in message
    assert message.isprintable()
    assert len(message) < 2000
    assert time.monotonic() - start < 30  # far above the limit, far below hanging


def test_hostile_template_leaves_the_next_rendering_alone() -> None:
    template = ChatTemplate({"default": "{{ 9**(9**9) }}", "tool_use": "fine"}, {})
    for _ in range(2):
        with pytest.raises(TemplateError):
            template.render(USER)
        assert template.render(USER, tools=[{}]) == "fine"
    template.close()


def test_template_process_that_was_killed_is_replaced() -> None:
    template = ChatTemplate({"default": "fine"}, {})
    assert template.render(USER) == "fine"
    child = template._process._child
    assert child is not None
    child.kill()
    child.wait()
    assert template.render(USER) == "fine"
    template.close()
    template.close()
    assert template.render(USER) == "fine"
    template.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_template_after_fork_has_a_process_of_its_own() -> None:
    template = ChatTemplate({"default": "fine"}, {})
    assert template.render(USER) == "fine"
    pid = os.fork()
    if pid == 0:
        os._exit(0 if template.render(USER) == "fine" else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert template.render(USER) == "fine"
    template.close()


@pytest.mark.parametrize(
    ("messages", "options", "words"),
    [
        ("Hello", {}, "messages must be a list"),
        ([], {}, "at least one message"),
        (["Hello"], {}, r"messages\[0\] must be an object"),
        ([{"content": "x"}], {}, r"messages\[0\] has no role"),
        ([{"role": 1, "content": "x"}], {}, "has no role"),
        ([{"role": "user", "content": 5}], {}, "content must be a text"),
        ([{"role": "user", "content": [{"type": "image"}]}], {}, "text alone"),
        ([{"role": "user", "content": "x", "y": float("nan")}], {}, "plain JSON"),
        ([{"role": "user", "content": "x", "y": object()}], {}, "plain JSON"),
        (USER, {"tools": [len]}, r"tools\[0\] must be an object"),
        (USER, {"template_kwargs": {"messages": []}}, "cannot set messages"),
        (USER, {"template_kwargs": {"bos_token": "x"}}, "cannot set bos_token"),
        (USER, {"template_kwargs": {"add_generation_prompt": 1}}, "cannot set"),
        (USER, {"template_kwargs": {f"k{i}": 1 for i in range(10**5)}}, "too many"),
        (USER, {"continue_final_message": True}, "without a generation prompt"),
    ],
)
def test_template_with_wrong_input_says_so(
    render: Any, messages: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        render(BODY, messages, **options)


def test_template_never_changes_the_callers_messages(render: Any) -> None:
    chat = [{"role": "user", "content": None, "thinking": "hm"}, *USER]
    before = [dict(message) for message in chat]
    render("{% set _ = messages[0].update({}) if false %}" + BODY, chat)
    assert chat == before


def test_template_in_many_threads_renders_each(render: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    template = ChatTemplate({"default": BODY}, {})
    chats = [[{"role": "user", "content": str(i)}] for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(template.render, chats)] == [f"user: {i}\n" for i in range(40)]
    template.close()
