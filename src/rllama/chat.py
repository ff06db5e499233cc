"""Conversations: from messages to the token ids that a model was trained to answer."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rllama.config import SamplingParams
from rllama.errors import ConfigError, TemplateError
from rllama.formats.chat_templates import ChatSource, read_template
from rllama.tokenizers.base import Tokenizer
from rllama.tokenizers.template import ChatTemplate, Message, Tool

__all__ = ["BUILT_IN", "Chat", "Message", "Tool"]

_FOLDER = Path(__file__).parent / "data" / "chat"
# The built-in templates, and the text that ends a turn in each: None where it is the model's own.
BUILT_IN: dict[str, str | None] = {
    "chatml": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "llama2": None,
    "llama3": "<|eot_id|>",
    "mistral": None,
    "vicuna": None,
}
# Around names of special tokens that are a user's text; Unicode keeps these for private use.
_START, _END = "\U0010fffc", "\U0010fffd"


class Chat:
    """How conversations with one model are written down.

    Notes:   `chosen` is the name of one of the model's templates or of a built-in one, or a file
    Raises:  TemplateError if the model has no template and none is chosen, or not the one chosen;
             ConfigError if a file cannot be read
    """

    def __init__(
        self, source: ChatSource, tokenizer: Tokenizer, *, chosen: str | None, where: str
    ) -> None:
        self._tokenizer = tokenizer
        variables = {**_special_texts(tokenizer), **source.variables}
        templates, origin, self.end_of_turn = _choose(source.templates, chosen, where)
        self._template = ChatTemplate(templates, variables, origin)
        self._names: re.Pattern[str] | None = None

    def render(self, messages: Sequence[Message], **options: Any) -> str:
        """The text of a conversation; options as `ChatTemplate.render` has them."""
        return self._template.render(messages, **options)

    def encode(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[int]:
        """The token ids of a conversation.

        Notes:   names of special tokens are special where the template writes them; in messages,
                 tools and template_kwargs they are ordinary text
        """
        names = self._special_names()
        text = self._template.render(
            _mark(messages, names),
            tools=_mark(tools, names),
            template_kwargs=_mark(template_kwargs, names),
            **options,
        )
        return self._encode_marked(text)

    def with_stops(self, params: SamplingParams) -> SamplingParams:
        """Parameters that also end where a built-in template ends a turn."""
        text = self.end_of_turn
        if text is None:
            return params
        ids = self._tokenizer.encode(text, parse_special=True)
        if len(ids) == 1 and self._tokenizer.is_special(ids[0]):
            return params.with_(stop_token_ids=(*(params.stop_token_ids or ()), *ids))
        return params.with_(stop=(*(params.stop or ()), text))

    def close(self) -> None:
        """End the process that renders templates."""
        self._template.close()

    def _special_names(self) -> re.Pattern[str]:
        if self._names is None:
            tokenizer = self._tokenizer
            texts = {tokenizer.token_text(i) for i in range(tokenizer.n_pieces)
                     if tokenizer.is_special(i)} - {""}  # fmt: skip
            longest_first = sorted(texts, key=len, reverse=True)
            self._names = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        return self._names

    def _encode_marked(self, text: str) -> list[int]:
        """Encode what a template made; marked names as text, the others as what they name."""
        names = self._special_names().pattern
        # A template may cut off one of the marks; the other then still tells.
        marked = re.compile(f"{_START}({names}){_END}?|({names}){_END}|[{_START}{_END}]")
        ids: list[int] = []
        end = 0
        for match in marked.finditer(text):
            ids += self._encode_piece(text[end : match.start()], at=end, parse_special=True)
            name = match[1] or match[2] or ""
            ids += self._encode_piece(name, at=match.start(), parse_special=False)
            end = match.end()
        return ids + self._encode_piece(text[end:], at=end, parse_special=True)

    def _encode_piece(self, piece: str, *, at: int, parse_special: bool) -> list[int]:
        """Encode a piece of a text; one from its middle without the space that begins a text."""
        if not piece or at == 0:
            return self._tokenizer.encode(piece, parse_special=parse_special)
        line = self._tokenizer.encode("\n")
        ids = self._tokenizer.encode("\n" + piece, parse_special=parse_special)
        if ids[: len(line)] == line:
            return ids[len(line) :]
        return self._tokenizer.encode(piece, parse_special=parse_special)


def _choose(
    own: Mapping[str, str], chosen: str | None, where: str
) -> tuple[Mapping[str, str], str, str | None]:
    """The templates to use, where they are from, and the text that ends a turn if it is known."""
    if chosen is None:
        if not own:
            raise TemplateError(
                f"{where}: the model has no chat template; choose one (chat_template, "
                f"--chat-template): a file, or {', '.join(BUILT_IN)}"
            )
        return own, f"{where}: chat template", None
    if chosen in own:
        return {"default": own[chosen]}, f"{where}: chat template {chosen!r}", None
    if chosen in BUILT_IN:
        text = (_FOLDER / f"{chosen}.jinja").read_text(encoding="utf-8")
        return {"default": text}, f"built-in chat template {chosen!r}", BUILT_IN[chosen]
    if not os.path.isfile(chosen):
        names = ", ".join([*own, *BUILT_IN])
        raise ConfigError(f"no chat template {chosen!r}: no such file, and no name of these: "
                          f"{names}")  # fmt: skip
    return {"default": read_template(chosen)}, chosen, None


def _special_texts(tokenizer: Tokenizer) -> dict[str, str]:
    ids = {"bos_token": tokenizer.bos_token_id, "eos_token": tokenizer.eos_token_id}
    return {
        key: tokenizer.token_text(token_id) for key, token_id in ids.items() if token_id is not None
    }


def _mark(value: Any, names: re.Pattern[str]) -> Any:
    """A copy in which names of special tokens are marked, wherever a string holds one."""
    if isinstance(value, str):
        bare = value.replace(_START, "").replace(_END, "")  # so that nobody forges a mark
        return names.sub(f"{_START}\\g<0>{_END}", bare)
    if isinstance(value, Mapping):
        return {key: _mark(item, names) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mark(item, names) for item in value]
    return value
