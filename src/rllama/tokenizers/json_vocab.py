"""The vocabulary and the model of a tokenizer.json, checked before the library sees them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rllama.errors import FormatError, UnsupportedError
from rllama.tokenizers.library import guarded
from rllama.tokenizers.vocabulary import MAX_PIECE_BYTES, MAX_PIECES

if TYPE_CHECKING:
    from tokenizers.models import Model

Fields = Mapping[str, object]

_UNUSUAL = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
_MAX_SCORE = 1e18


def vocab_of(model: Fields, where: str) -> dict[str, int]:
    """The names and ids of a BPE or Unigram model.

    Raises:  FormatError for ids that are no ids or occur twice, names that are too long, scores
             that are no numbers; UnsupportedError for other models
    """
    kind = model.get("type", "BPE")
    vocab = model.get("vocab")
    if kind == "BPE" and isinstance(vocab, dict):
        return _checked(vocab, where)
    if kind == "Unigram" and isinstance(vocab, list):
        return _checked({name: i for i, (name, _) in enumerate(_scored(vocab, where))}, where)
    if kind not in ("BPE", "Unigram"):
        raise UnsupportedError(f"{where}: a model of type {ascii(kind)[:40]}; BPE and Unigram are "
                               "known")  # fmt: skip
    raise FormatError(f"{where}: model: vocab is missing or of the wrong kind")


def _checked(vocab: dict[str, int], where: str) -> dict[str, int]:
    if not 0 < len(vocab) <= MAX_PIECES:
        raise FormatError(f"{where}: {len(vocab)} tokens, expected 1 to {MAX_PIECES}")
    wrong = {type(token_id) for token_id in vocab.values()} - {int}
    if wrong or min(vocab.values()) < 0 or max(vocab.values()) >= MAX_PIECES:
        raise FormatError(f"{where}: a token has an id that is no whole number from 0 to "
                          f"{MAX_PIECES - 1}")  # fmt: skip
    if len(set(vocab.values())) != len(vocab):
        raise FormatError(f"{where}: two tokens have one id")
    if len(max(vocab, key=len)) > MAX_PIECE_BYTES:
        raise FormatError(f"{where}: a token has more than {MAX_PIECE_BYTES} characters")
    try:
        "".join(vocab).encode()
    except UnicodeEncodeError:
        raise FormatError(f"{where}: a token is not Unicode text") from None
    return vocab


def _scored(vocab: list[object], where: str) -> list[tuple[str, float]]:
    pairs: list[tuple[str, float]] = []
    for entry in vocab:
        name, score = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if not isinstance(name, str) or not isinstance(score, (int, float)):
            raise FormatError(f"{where}: token {len(pairs)}: a name and a score are wanted")
        if not math.isfinite(score) or abs(score) > _MAX_SCORE:
            raise FormatError(f"{where}: token {len(pairs)} has the score {score:g}")
        pairs.append((name, float(score)))
    if len({name for name, _ in pairs}) != len(pairs):
        raise FormatError(f"{where}: a token occurs twice in the vocabulary")
    return pairs


def model_of(model: Fields, row: dict[str, int], hidden: Mapping[str, str], where: str) -> Model:
    """The library's model.

    Notes:   `row` are the names, in a row, those in `hidden` under their other name; merges that
             would make a hidden token are left out
    Raises:  FormatError, UnsupportedError
    """
    from tokenizers.models import BPE, Unigram

    byte_fallback = model.get("byte_fallback") is True
    if model.get("type") == "Unigram":
        unk = model.get("unk_id")
        if type(unk) is not int or not 0 <= unk < len(row):
            raise FormatError(f"{where}: unk_id must be the id of a token")
        scored = _scored(model["vocab"], where)  # type: ignore[arg-type]
        pairs = [(hidden.get(name, name), score) for name, score in scored]
        return guarded(lambda: Unigram(pairs, unk_id=unk, byte_fallback=byte_fallback), where)
    for key in _UNUSUAL:
        if model.get(key):
            raise UnsupportedError(
                f"{where}: model: {key} {ascii(model[key])[:40]} is not supported"
            )
    merges = _merges(model.get("merges"), row, hidden, where)
    unk_token = _unk_token(model, row, hidden, where)
    return guarded(
        lambda: BPE(
            vocab=row, merges=merges, unk_token=unk_token, byte_fallback=byte_fallback,
            fuse_unk=model.get("fuse_unk") is True,
            ignore_merges=model.get("ignore_merges") is True,
        ),
        where,
    )  # fmt: skip


def _unk_token(
    model: Fields, row: Mapping[str, int], hidden: Mapping[str, str], where: str
) -> str | None:
    name = model.get("unk_token")
    if name is None:
        return None
    if not isinstance(name, str) or (name not in row and name not in hidden):
        raise FormatError(f"{where}: unk_token {ascii(name)[:60]} is no token")
    return hidden.get(name, name)


def _merges(
    value: object, row: Mapping[str, int], hidden: Mapping[str, str], where: str
) -> list[tuple[str, str]]:
    if not isinstance(value, list):
        raise FormatError(f"{where}: merges: a list is wanted")
    found: list[tuple[str, str]] = []
    for i, merge in enumerate(value):
        sides = merge.split(" ") if isinstance(merge, str) else merge
        if isinstance(sides, list) and len(sides) == 2 and all(type(s) is str for s in sides):
            left, right = sides
            if left in row and right in row and left + right in row:
                found.append((left, right))
                continue
            if all(name in row or name in hidden for name in (left, right, left + right)):
                continue
        raise FormatError(f"{where}: merge {i}, {ascii(merge)[:60]}, names no two tokens that make "
                          "a third")  # fmt: skip
    return found
