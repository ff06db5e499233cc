"""Builds a tokenizer from a tokenizer.json and the settings beside it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rllama.config import TokenizerSource
from rllama.errors import FormatError, UnsupportedError
from rllama.tokenizers.json_parts import Part, Spelling, parts_of, spelling_of, steps
from rllama.tokenizers.json_vocab import model_of, vocab_of
from rllama.tokenizers.library import LibraryEncoder, in_a_row, meaning, share
from rllama.tokenizers.merged import MergedTokenizer, Specials, Tokens
from rllama.tokenizers.vocabulary import MAX_PIECES, byte_value

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_MAX_ADDED, _MAX_ADDED_CHARS = 1 << 16, 4096
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


@dataclass(frozen=True, slots=True)
class Added:
    """An added token: its id, its name, and how it is looked for in a text."""

    token_id: int
    name: str
    flags: Mapping[str, bool]


def load_json(source: TokenizerSource, where: str) -> MergedTokenizer:
    """A tokenizer from the fields of a tokenizer.json.

    Notes:   ids are those of the tokenizers library without its post-processor; BOS goes in front
             if add_bos_token says so, or where that is silent, if the post-processor does
    Raises:  FormatError for damage, UnsupportedError for parts that are not known
    """
    fields, settings = source.fields, source.settings
    model = fields.get("model")
    if not isinstance(model, Mapping):
        raise FormatError(f"{where}: model: an object is wanted")
    vocab = vocab_of(model, where)
    spelling, parts = spelling_of(fields, where), parts_of(fields, where)
    added = _added(fields, settings, vocab, where)
    encoder = _encoder(model, vocab, parts, added, where)
    names = {token_id: name for name, token_id in vocab.items()}
    names |= {token.token_id: token.name for token in added}
    specials = _specials(source, names, where)
    tokens = _tokens(names, added, spelling)
    return MergedTokenizer(encoder, tokens, specials, source.vocab_size, where)


def _tokens(names: Mapping[int, str], added: list[Added], spelling: Spelling) -> Tokens:
    """What ids show. Byte pieces are bytes of a text, also where the file lists them as added."""
    of_bytes = frozenset(i for i, name in names.items() if spelling.byte_of(name) is not None)
    special = frozenset(token.token_id for token in added if token.flags["special"])
    return Tokens(
        names, special - of_bytes, frozenset(token.token_id for token in added) - of_bytes,
        spelling.bytes_of, spelling.strips_space, of_bytes,
    )  # fmt: skip


def _encoder(
    model: Part, vocab: Mapping[str, int], parts: Tokenizer, added: list[Added], where: str
) -> LibraryEncoder:
    """The library's model and added tokens, special ones hidden from what text can make.

    Notes:   a special token that is in the vocabulary, too, goes there under a name that nobody
             can know; not so the byte pieces, which byte fallback looks for under their own
    """
    secret = secrets.token_hex(8)
    special = {token.name for token in added if token.flags["special"]} & vocab.keys()
    if model.get("byte_fallback") is True:
        special = {name for name in special if byte_value(name.encode()) is None}
    hidden = {name: f"<{secret}:{vocab[name]}>" for name in special}
    row = in_a_row({hidden.get(name, name): token_id for name, token_id in vocab.items()})
    inner = model_of(model, row, hidden, where)
    ids = meaning(vocab.values(), row, {token.name: token.token_id for token in added})
    tokens = [_library_token(token, parts) for token in added]
    plain, full = (share(inner, parts, tokens) for _ in "12")
    plain.encode_special_tokens = True
    return LibraryEncoder(plain, full, ids)


def _library_token(token: Added, parts: Tokenizer) -> AddedToken:
    """The token as the library looks for it.

    Notes:   a special token is found under its own name alone, not under what a normaliser makes
             into it: who keeps its name out of a text keeps the token out
    """
    from tokenizers import AddedToken

    flags = dict(token.flags)
    if flags["special"] and parts.normalizer is not None:
        flags["normalized"] &= parts.normalizer.normalize_str(token.name) != token.name
    return AddedToken(token.name, **flags)


def _added(fields: Part, settings: Part, vocab: Mapping[str, int], where: str) -> list[Added]:
    """Added tokens of the file; those of tokenizer_config.json go over them, as in transformers."""
    listed = fields.get("added_tokens") or []
    if not isinstance(listed, list) or len(listed) > _MAX_ADDED:
        raise FormatError(f"{where}: added_tokens: a list of at most {_MAX_ADDED} is wanted")
    found: dict[str, Added] = {}
    for entry in listed:
        token = _one(entry, entry.get("id") if isinstance(entry, Mapping) else None, where)
        if token.name in found:
            raise FormatError(f"{where}: added token {ascii(token.name)[:60]} occurs twice")
        found[token.name] = token
    for token in _of_settings(settings, vocab, found, where):
        found[token.name] = token
    ids = [token.token_id for token in found.values()]
    owners = {token_id: name for name, token_id in vocab.items() if name not in found}
    twin = next((i for i in ids if i in owners), None) if len(set(ids)) == len(ids) else ids[0]
    if twin is not None:
        raise FormatError(f"{where}: two tokens have one id among the added tokens ({twin})")
    return sorted(found.values(), key=lambda token: token.token_id)


def _of_settings(
    settings: Part, vocab: Mapping[str, int], found: Mapping[str, Added], where: str
) -> list[Added]:
    decoder = settings.get("added_tokens_decoder")
    more: dict[str, Added] = {}
    if isinstance(decoder, Mapping) and len(decoder) <= _MAX_ADDED:
        for key, entry in decoder.items():
            token = _one(entry, int(key) if key.isdigit() and len(key) < 10 else None, where)
            known = found.get(token.name)
            if known is None or known.token_id == token.token_id:
                more[token.name] = token
    listed = settings.get("additional_special_tokens")
    values = [settings.get(role) for role in _ROLES] + (listed if isinstance(listed, list) else [])
    for name in filter(None, map(name_of, values)):
        if name in vocab and name not in found and name not in more:
            more[name] = Added(vocab[name], name, _flags({"special": True}))
    return list(more.values())


def _one(entry: object, token_id: object, where: str) -> Added:
    name = entry.get("content") if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or type(token_id) is not int:
        raise FormatError(f"{where}: an added token without an id")
    if not 0 <= token_id < MAX_PIECES:
        raise FormatError(f"{where}: an added token has an id outside 0 to {MAX_PIECES - 1}")
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_ADDED_CHARS:
        raise FormatError(f"{where}: added token {token_id}: a name of 1 to {_MAX_ADDED_CHARS} "
                          "characters is wanted")  # fmt: skip
    if any("\ud800" <= char <= "\udfff" for char in name):
        raise FormatError(f"{where}: added token {token_id}: its name is not Unicode text")
    return Added(token_id, name, _flags(entry))


def _flags(entry: Part) -> dict[str, bool]:
    flags = {name: entry.get(name) is True for name in _FLAGS}
    if "normalized" not in entry:
        flags["normalized"] = not flags["special"]
    return flags


def name_of(value: object) -> str | None:
    """The name in a setting such as bos_token, which is a text or an object with a content."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _specials(source: TokenizerSource, names: Mapping[int, str], where: str) -> Specials:
    ids = {name: token_id for token_id, name in names.items()}
    settings = source.settings
    template = _first_special(source.fields, ids, where)
    bos = _id_of(settings, "bos_token", ids, where)
    if bos is None:
        bos = source.bos_token_id if template is None else template
    eos = _id_of(settings, "eos_token", ids, where)
    wish = settings.get("add_bos_token", source.add_bos)
    add_bos = wish if type(wish) is bool else template is not None and template == bos
    return Specials(bos, source.eos_token_id if eos is None else eos, add_bos)


def _id_of(settings: Part, role: str, ids: Mapping[str, int], where: str) -> int | None:
    name = name_of(settings.get(role))
    if name is None:
        return None
    if name not in ids:
        raise FormatError(f"{where}: {role} {ascii(name)[:60]} is no token of the vocabulary")
    return ids[name]


def _first_special(fields: Part, ids: Mapping[str, int], where: str) -> int | None:
    """The token that the post-processor puts in front of a text; all that it names must exist."""
    first: int | None = None
    for step in steps(fields.get("post_processor"), "processors", where):
        if step["type"] == "TemplateProcessing":
            first = _template_first(step, ids, where)
        elif step["type"] in ("BertProcessing", "RobertaProcessing"):
            cls = step.get("cls")
            first = ids.get(str(cls[0])) if isinstance(cls, list) and cls else None
        elif step["type"] != "ByteLevel":
            raise UnsupportedError(f"{where}: a post-processor of type {ascii(step['type'])[:40]}")
    return first


def _template_first(step: Part, ids: Mapping[str, int], where: str) -> int | None:
    single = step.get("single")
    if not isinstance(single, list):
        raise FormatError(f"{where}: post_processor: single: a list is wanted")
    names = []
    for piece in single:
        special = piece.get("SpecialToken") if isinstance(piece, Mapping) else None
        names.append(special.get("id") if isinstance(special, Mapping) else None)
    for name in names:
        if name is not None and (not isinstance(name, str) or name not in ids):
            raise FormatError(f"{where}: the post-processor names {ascii(name)[:60]}, which is no "
                              "token of the vocabulary")  # fmt: skip
    return ids[names[0]] if names and names[0] is not None else None
