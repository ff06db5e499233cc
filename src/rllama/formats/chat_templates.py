"""Where models keep their chat templates: beside a tokenizer_config.json, or in a GGUF."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rllama.errors import ConfigError
from rllama.formats.fields import shown
from rllama.formats.files import is_file, list_dir, printable, read_small
from rllama.formats.gguf_header import GgufHeader
from rllama.formats.json_file import SETTINGS_LIMIT_BYTES, read_json

_LIMIT_BYTES = 1 << 20
_MAX_TEMPLATES = 64
_GGUF_KEY = "tokenizer.chat_template"
_SPECIALS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token")


@dataclass(frozen=True, slots=True)
class ChatSource:
    """What a model says about conversations, as plain data.

    Notes:   `templates` by name, "default" for the one without; `variables` are texts of special
             tokens that templates use, as far as the files spell them
    """

    templates: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)


def folder_chat(folder: str) -> ChatSource:
    """The templates of a Hugging Face folder.

    Notes:   chat_template.jinja goes before what tokenizer_config.json holds, as it does there;
             additional_chat_templates/ has more of them, by name
    Raises:  FormatError, ConfigError if a file is damaged
    """
    settings_path = os.path.join(folder, "tokenizer_config.json")
    settings: dict[str, Any] = {}
    if is_file(settings_path):
        settings = read_json(settings_path, ConfigError, SETTINGS_LIMIT_BYTES)
    templates = _named(settings.get("chat_template"), printable(settings_path))
    json_path = os.path.join(folder, "chat_template.json")
    if is_file(json_path):
        held = read_json(json_path, ConfigError, SETTINGS_LIMIT_BYTES).get("chat_template")
        templates |= _named(held, printable(json_path))
    own = os.path.join(folder, "chat_template.jinja")
    if is_file(own):
        templates = {"default": read_template(own)}
    templates |= _additional(os.path.join(folder, "additional_chat_templates"))
    return ChatSource(templates, _specials(settings))


def read_template(path: str) -> str:
    """The text of a template file. Raises ConfigError if it is missing, too long or not UTF-8."""
    data = read_small(path, _LIMIT_BYTES)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = printable(path)
        raise ConfigError(f"{where}: not UTF-8 at offset {error.start}: no template") from None


def gguf_chat(header: GgufHeader) -> ChatSource:
    """The templates of a GGUF file: tokenizer.chat_template and tokenizer.chat_template.<name>."""
    templates: dict[str, str] = {}
    for key, value in header.values.items():
        if key == _GGUF_KEY or key.startswith(f"{_GGUF_KEY}."):
            name = key[len(_GGUF_KEY) + 1 :] or "default"
            templates |= _named([{"name": name, "template": value}], f"{header.where}: {key}")
    return ChatSource(templates)


def _named(value: object, where: str) -> dict[str, str]:
    """One template, a list of named ones, or an object of them."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, dict):
        value = [{"name": name, "template": text} for name, text in value.items()]
    if not isinstance(value, list) or len(value) > _MAX_TEMPLATES:
        raise ConfigError(f"{where}: chat_template must be a text or a list of named texts")
    found = {}
    for item in value:
        name = item.get("name") if isinstance(item, dict) else None
        text = item.get("template") if isinstance(item, dict) else None
        if not isinstance(name, str) or not isinstance(text, str):
            raise ConfigError(f"{where}: {shown(item)} is no named chat template")
        found[name] = text
    return found


def _additional(folder: str) -> dict[str, str]:
    if not os.path.isdir(folder):
        return {}
    files = [name for name in list_dir(folder) if name.endswith(".jinja")][:_MAX_TEMPLATES]
    return {
        name.removesuffix(".jinja"): read_template(os.path.join(folder, name)) for name in files
    }


def _specials(settings: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key in _SPECIALS:
        value = settings.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[key] = text
    return found
