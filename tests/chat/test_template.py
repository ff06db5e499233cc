from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from chat.hostile_templates import HOSTILE

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
