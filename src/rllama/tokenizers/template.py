"""Chat templates: which one is used, what it is given, and what may come out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rllama.errors import ConfigError, TemplateError
from rllama.tokenizers.template_process import BrokenTemplateError, TemplateProcess

Message = Mapping[str, Any]
Tool = Mapping[str, Any]

MAX_SOURCE_CHARS = 1 << 20
_MAX_INPUT_BYTES = 64 << 20  # no context holds more
_MAX_KWARGS = 256
_RESERVED = {"messages", "tools", "documents", "add_generation_prompt"}
# How messages may name a model's thoughts; the first is what templates read.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_TAG = "CONTINUE FINAL MESSAGE "
# A template that does something of its own where the content is no string.
_READS_PARTS = re.compile(
    r"is (?:not )?(?:string|iterable|sequence|mapping)|\[['\"]type['\"]\]|\.type\b|\.text\b"
)


class ChatTemplate:
    """The chat templates of one model; their source is a program that is never trusted.

    Notes:   `sources` by name, "default" for the one without; `variables` such as bos_token are
             given to every rendering; templates run in a process of their own, with limits
    """

    def __init__(
        self, sources: Mapping[str, str], variables: Mapping[str, str], where: str = "chat template"
    ) -> None:
        self.sources = dict(sources)
        self.variables = dict(variables)
        self.where = where
        self._process = TemplateProcess()

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """The text of a conversation, as transformers' `apply_chat_template` would give it.

        Notes:   continue_final_message leaves the last message open, for the model to go on with
        Raises:  ConfigError for messages or options that make no sense, TemplateError for what
                 the template does wrong or refuses
        """
        if continue_final_message and add_generation_prompt:
            raise ConfigError("continue_final_message goes without a generation prompt")
        name = self._choose(bool(tools))
        source, where = self.sources[name], f"{self.where} {name!r}"
        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateError(f"{where}: {len(source)} characters are too long for a template")
        variables = self._variables(messages, tools, template_kwargs, add_generation_prompt, source)
        if continue_final_message:
            _tag_last(variables["messages"])
        n_chars = len(json.dumps(variables, ensure_ascii=False))
        if n_chars > _MAX_INPUT_BYTES:
            raise ConfigError(f"a conversation of {n_chars} characters is too long")
        try:
            text = self._rendered(source, variables, (4 << 20) + 8 * n_chars)
        except TemplateError as error:
            raise TemplateError(f"{where}: {error}") from None
        if continue_final_message:
            text = _cut_at_tag(text, where)
        if not text.strip():
            raise TemplateError(f"{where}: it renders nothing for this conversation")
        return text

    def close(self) -> None:
        """End the process that renders."""
        self._process.close()

    def _rendered(self, source: str, variables: dict[str, Any], output_limit: int) -> str:
        """Render without fields that are null; where that fails, with null for no content.

        Notes: most templates cannot do with a null, some older ones not without it
        """
        try:
            return self._process.render(source, variables, output_limit=output_limit)
        except BrokenTemplateError:
            chat = variables["messages"]
            if all("content" in message for message in chat):
                raise
            filled = [{"content": None, **message} for message in chat]
            return self._process.render(
                source, {**variables, "messages": filled}, output_limit=output_limit
            )

    def _choose(self, has_tools: bool) -> str:
        if has_tools and "tool_use" in self.sources:
            return "tool_use"
        if "default" in self.sources:
            return "default"
        if len(self.sources) == 1:
            return next(iter(self.sources))
        names = ", ".join(sorted(self.sources)[:8])
        raise TemplateError(
            f"{self.where}: none of the templates is the default one; choose by name "
            f"(chat_template, --chat-template): {names}"
        )

    def _variables(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None,
        template_kwargs: Mapping[str, Any] | None,
        add_generation_prompt: bool,
        source: str,
    ) -> dict[str, Any]:
        extra = dict(template_kwargs or {})
        reserved = sorted((_RESERVED - {"documents"} | set(self.variables)) & set(extra))
        if reserved:
            raise ConfigError(f"template_kwargs cannot set {', '.join(reserved)}")
        if len(extra) > _MAX_KWARGS:
            raise ConfigError(f"{len(extra)} template_kwargs are too many; at most {_MAX_KWARGS}")
        chat = [_message(message, i) for i, message in enumerate(_listed(messages, "messages"))]
        if not chat:
            raise ConfigError("a chat needs at least one message")
        if not _READS_PARTS.search(source):
            chat = [_joined(message) for message in chat]
        given = {
            **self.variables,
            "documents": None,
            **extra,
            "messages": chat,
            "tools": None if tools is None else [*_listed(tools, "tools")],
            "add_generation_prompt": bool(add_generation_prompt),
        }
        try:
            plain: dict[str, Any] = json.loads(json.dumps(given, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"messages, tools and template_kwargs must be plain JSON values: "
                              f"{error}") from None  # fmt: skip
        return plain


def _listed(value: object, name: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise ConfigError(f"{name} must be a list of objects, not a {type(value).__name__}")
    for i, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise ConfigError(f"{name}[{i}] must be an object, not a {type(item).__name__}")
    return value


def _message(message: Message, index: int) -> dict[str, Any]:
    """A copy of a message, its thoughts under every name that templates read them by."""
    if not isinstance(message.get("role"), str):
        raise ConfigError(f"messages[{index}] has no role (system, user, assistant, tool)")
    content = message.get("content")
    if content is not None and not isinstance(content, (str, list, tuple)):
        raise ConfigError(f"messages[{index}]: content must be a text or a list of parts, not a "
                          f"{type(content).__name__}")  # fmt: skip
    given = {key: value for key, value in message.items() if value is not None}
    thoughts = next((given[key] for key in _REASONING if key in given), None)
    if thoughts is None:
        return given
    return {"thinking": thoughts, **given, "reasoning_content": thoughts}


def _joined(message: dict[str, Any]) -> dict[str, Any]:
    """Text parts joined, for a template that knows only whole texts."""
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        return message
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    texts = [text for text in parts if isinstance(text, str)]
    if len(texts) < len(parts):
        raise ConfigError("content parts that are no text: this model's template knows text alone")
    return {**message, "content": "\n".join(texts)}


def _tag_last(messages: list[dict[str, Any]]) -> None:
    last = messages[-1]
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = content + _TAG
        return
    for part in reversed(content or []):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            part["text"] += _TAG
            return
    raise ConfigError("continue_final_message: the last message has no text to go on with")


def _cut_at_tag(text: str, where: str) -> str:
    at = text.rfind(_TAG.strip())
    if at < 0:
        raise TemplateError(f"{where}: it leaves out the last message, which is to be continued")
    return text[:at] if text[at:].startswith(_TAG) else text[:at].rstrip()
