"""Conversations through the library and the command line, on the embedded model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rllama import LLM, SamplingParams
from rllama.chat import BUILT_IN, Chat
from rllama.cli.main import main
from rllama.errors import ConfigError, TemplateError
from rllama.formats.chat_templates import ChatSource

USER = {"role": "user", "content": "a frog"}
TURNS = [USER, {"role": "assistant", "content": "Hop."}, {"role": "user", "content": "why?"}]
GREEDY = SamplingParams(temperature=0, max_new_tokens=12)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(n_threads=1, max_seq_len=256, chat_template="llama2") as made:
        yield made


def chat_of(llm: LLM, source: str) -> Chat:
    assert llm.tokenizer is not None
    return Chat(ChatSource({"default": source}), llm.tokenizer, chosen=None, where="model")


def test_chat_answers_what_its_rendered_prompt_answers(llm: LLM) -> None:
    text = llm.render_chat(TURNS)
    assert text == "<s>[INST] a frog [/INST] Hop. </s><s>[INST] why? [/INST]"
    assert llm.tokenizer is not None
    ids = llm.tokenizer.encode(text, parse_special=True)
    want = llm.generate(ids, GREEDY)
    assert llm.chat(TURNS, GREEDY).text == want.text
    assert "".join(llm.chat(TURNS, GREEDY, stream=True)) == want.text
    assert asyncio.run(llm.achat(TURNS, GREEDY)).text == want.text


def test_chat_names_of_special_tokens_in_messages_are_text(llm: LLM) -> None:
    chat = chat_of(llm, "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    tokenizer = llm.tokenizer
    assert tokenizer is not None
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for content in ("</s>", "x</s>y", "<s></s><s>", "\U0010fffc</s>", "a\U0010fffdb<s"):
        ids = chat.encode([{"role": "user", "content": content}])
        assert (ids[0], ids[-1]) == (bos, eos)
        assert not {bos, eos} & {*ids[1:-1]}
        plain = content.replace("\U0010fffc", "").replace("\U0010fffd", "")
        assert tokenizer.decode(ids) == plain
    assert chat.render([{"role": "user", "content": "x</s>y"}]) == "<s>x</s>y</s>"
    chat.close()


def test_chat_special_names_that_a_template_takes_apart_stay_text(llm: LLM) -> None:
    chat = chat_of(llm, "{{ messages[0].content[1:] }}{{ messages[0].content.split('s')[0] }}s>")
    ids = chat.encode([{"role": "user", "content": "</s>"}])
    assert llm.tokenizer is not None
    assert llm.tokenizer.eos_token_id not in ids
    chat.close()


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_template_renders_all_roles(name: str) -> None:
    with LLM(n_threads=1, max_seq_len=64, chat_template=name) as llm:
        chat = [{"role": "system", "content": "Be kind."}, *TURNS]
        text = llm.render_chat(chat)
        order = [text.find(word) for word in ("Be kind.", "a frog", "Hop.", "why?")]
        assert -1 not in order
        assert order == sorted(order)
        without = llm.render_chat(chat, add_generation_prompt=False)
        assert text.startswith(without)


def test_built_in_template_that_wants_turns_refuses_others() -> None:
    with (
        LLM(n_threads=1, max_seq_len=64, chat_template="mistral") as llm,
        pytest.raises(TemplateError, match=r"'mistral'.*take turns"),
    ):
        llm.chat([USER, USER], GREEDY)


def test_built_in_template_ends_where_its_turn_ends() -> None:
    with LLM(n_threads=1, max_seq_len=64, chat_template="chatml") as llm:
        chat = llm._need_chat()
        assert chat.with_stops(SamplingParams(stop=("x",))).stop == ("x", "<|im_end|>")


def test_chat_without_a_template_says_what_to_do() -> None:
    with (
        LLM(n_threads=1, max_seq_len=64) as llm,
        pytest.raises(TemplateError, match=r"no chat template.*--chat-template.*chatml"),
    ):
        llm.chat([USER])


def test_chat_template_from_a_file_or_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("mine: {{ messages[0].content }}")
    with LLM(n_threads=1, max_seq_len=64, chat_template=str(path)) as llm:
        assert llm.render_chat([USER]) == "mine: a frog"
    with (
        LLM(n_threads=1, max_seq_len=64, chat_template="nowhere.jinja") as llm,
        pytest.raises(ConfigError, match=r"no chat template 'nowhere.jinja'"),
    ):
        llm.render_chat([USER])
    path.write_bytes(b"\xff")
    with (
        LLM(n_threads=1, max_seq_len=64, chat_template=str(path)) as llm,
        pytest.raises(ConfigError, match="not UTF-8 at offset 0"),
    ):
        llm.render_chat([USER])


def test_chat_flag_sends_a_message(capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--chat", "--chat-template", "llama2", "--prompt", "a frog", "--temperature", "0",
             "--max-new-tokens", "12", "-q", "--max-seq-len", "256"]  # fmt: skip
    assert main(flags) == 0
    with LLM(n_threads=1, max_seq_len=256, chat_template="llama2") as llm:
        assert capfd.readouterr().out == llm.chat([USER], GREEDY).text + "\n"


def test_chat_flags_give_a_system_message_and_variables(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ mood }}")
    flags = ["--chat", "--chat-template", str(path), "--prompt", "a frog", "--temperature", "0",
             "--max-new-tokens", "12", "-q", "--max-seq-len", "256",
             "--system", "be brief", "--template-kwargs", '{"mood": "merry"}']  # fmt: skip
    assert main(flags) == 0
    with LLM(n_threads=1, max_seq_len=256) as llm:
        ids = llm.tokenize("system: be brief\nuser: a frog\nmerry", False)
        assert capfd.readouterr().out == llm.generate(ids, GREEDY).text + "\n"


def test_chat_flag_without_a_template_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--chat", "--prompt", "x", "-q"]) == 1
    assert "no chat template" in capfd.readouterr().err


def fields(folder: Path, settings: dict[str, Any]) -> ChatSource:
    import json

    from rllama.formats.chat_templates import folder_chat

    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder_chat(str(folder))


def test_folder_templates_are_found_in_every_form(tmp_path: Path) -> None:
    found = fields(tmp_path, {"chat_template": "one", "bos_token": {"content": "<b>"},
                              "eos_token": "<e>"})  # fmt: skip
    assert found == ChatSource({"default": "one"}, {"bos_token": "<b>", "eos_token": "<e>"})
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    assert fields(tmp_path, {"chat_template": named}).templates == {"default": "a", "tool_use": "b"}
    assert fields(tmp_path, {"chat_template": {"rag": "c"}}).templates == {"rag": "c"}
    (tmp_path / "chat_template.json").write_text('{"chat_template": "d"}')
    assert fields(tmp_path, {"chat_template": "one"}).templates == {"default": "d"}
    (tmp_path / "chat_template.jinja").write_text("e")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("f")
    assert fields(tmp_path, {"chat_template": "one"}).templates == {"default": "e", "rag": "f"}


@pytest.mark.parametrize("value", [5, [5], [{"name": "x"}], [{"name": 1, "template": "x"}]])
def test_folder_template_of_another_kind_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json"):
        fields(tmp_path, {"chat_template": value})
