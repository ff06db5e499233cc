"""Templates of current models render as transformers renders them.

They belong to their authors, so they are not in this repository: RLLAMA_TEMPLATES names a folder
of .jinja files, such as models/templates of llama.cpp.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rllama.errors import TemplateError
from rllama.tokenizers.template import ChatTemplate

FOLDER = os.environ.get("RLLAMA_TEMPLATES", "")
FILES = sorted(Path(FOLDER).glob("*.jinja")) if FOLDER else []

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place <now> & later",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "city, “quoted”"},
                "days": {"type": "integer", "enum": [1, 2, 3]},
            },
            "required": ["place"],
        },
    },
}
CALL = {
    "type": "function",
    "id": "call_0001",
    "function": {"name": "get_weather", "arguments": {"place": "Ulm", "days": 2}},
}
USER = {"role": "user", "content": "  What is the weather in Ulm? 天気 🙂\n"}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [USER],
    "system": [{"role": "system", "content": "Be brief."}, USER],
    "turns": [USER, {"role": "assistant", "content": "Rain."}, {"role": "user", "content": "Oh"}],
    "thoughts": [
        USER,
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nRain."},
        {"role": "user", "content": "Sure?"},
    ],
    "reasoning": [
        USER,
        {"role": "assistant", "content": "Rain.", "reasoning_content": "clouds"},
        {"role": "user", "content": "Sure?"},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
    "call": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "get_weather", "tool_call_id": "call_0001", "content": '{"c": 9}'},
    ],
    "empty answer": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tools": {"tools": [WEATHER]},
    "no prompt": {"add_generation_prompt": False},
    "no thinking": {"template_kwargs": {"enable_thinking": False, "date_string": "1 Jan 2026"}},
}

pytestmark = pytest.mark.skipif(not FILES, reason="RLLAMA_TEMPLATES names no folder of templates")


@pytest.fixture(scope="module")
def reference() -> Any:
    """transformers' own way, with a tokenizer that only knows two special tokens."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()),
        bos_token="<s>",
        eos_token="</s>",
    )


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def template(request: pytest.FixtureRequest) -> Iterator[ChatTemplate]:
    source = request.param.read_text()
    made = ChatTemplate({"default": source}, {"bos_token": "<s>", "eos_token": "</s>"})
    yield made
    made.close()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS.keys())
def test_template_in_the_wild_renders_as_transformers(
    template: ChatTemplate, reference: Any, chat: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    source = template.sources["default"]
    kwargs = {"add_generation_prompt": True, **options}
    extra = kwargs.pop("template_kwargs", {})
    try:
        want = reference.apply_chat_template(
            chat, chat_template=source, tokenize=False, **kwargs, **extra
        )
    except Exception:
        want = ""  # the template refuses this conversation, or fails
    try:
        got = template.render(chat, **{"add_generation_prompt": True, **options})
    except TemplateError:
        got = ""
    if not want.strip() or "[{'type': 'text'" in want:
        # Parts of a text, and no content at all, are fitted to the template where it cannot.
        assert not got or chat is CHATS["parts"] or chat is CHATS["empty answer"]
    else:
        assert got == want
