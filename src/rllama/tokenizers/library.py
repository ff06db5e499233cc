"""The tokenizers library, held so that nothing of it surprises: encoding alone, no state."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from rllama.errors import ConfigError, FormatError
from rllama.tokenizers.text import utf8

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import Model

_T = TypeVar("_T")
_RUNS = re.compile(r"\s+|\S+")
_SLICE = 400_000  # characters at a time, as in Meta's code for its tiktoken files


class LibraryEncoder:
    """Text to ids.

    Notes:   `plain` knows the added tokens that any text may hold, `full` the special ones too;
             both share one model. ids: what the library's ids mean, None: themselves;
             longest_run: runs of (non-)space characters are cut after so many, 0: never
    """

    def __init__(
        self, plain: Tokenizer, full: Tokenizer, ids: Sequence[int] | None, longest_run: int = 0
    ) -> None:
        self._plain, self._full = plain, full
        self._ids, self._longest_run = ids, longest_run

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        """The ids of a text. Raises ConfigError if it is too long."""
        text = utf8(text).decode()
        tokenizer = self._full if parse_special else self._plain
        found: list[int] = []
        for part in _parts(text, self._longest_run) if self._longest_run else (text,):
            try:
                found += tokenizer.encode(part, add_special_tokens=False).ids
            except BaseException as error:
                if not _is_library_failure(error):
                    raise
                raise ConfigError(f"no tokens for this text: {one_line(error)}") from None
        return found if self._ids is None else list(map(self._ids.__getitem__, found))


def _parts(text: str, longest_run: int) -> Iterator[str]:
    """The text in slices, cut again in runs of spaces or of other characters that are too long."""
    for start in range(0, len(text), _SLICE):
        part = text[start : start + _SLICE]
        done = 0
        if len(part) > longest_run:
            for run in _RUNS.finditer(part):
                for cut in range(run.start() + longest_run, run.end(), longest_run):
                    yield part[done:cut]
                    done = cut
        yield part[done:]


def in_a_row(vocab: Mapping[str, int]) -> dict[str, int]:
    """The same names in the same order, with ids from 0 on: the library counts its tokens."""
    return {name: i for i, name in enumerate(sorted(vocab, key=vocab.__getitem__))}


def meaning(
    own: Iterable[int], row: Mapping[str, int], added: Mapping[str, int]
) -> list[int] | None:
    """What the library's ids stand for, None: themselves.

    Notes:   `own` are the ids of its model's tokens, whose names are those of `row`; behind them it
             numbers the added tokens that its model lacks
    """
    meant = sorted(own) + [token_id for name, token_id in added.items() if name not in row]
    return None if meant == list(range(len(meant))) else meant


def share(model: Model, parts: Tokenizer, added: Iterable[AddedToken]) -> Tokenizer:
    """A tokenizer with this model, the other parts of `parts`, and these added tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer(model)
    if parts.normalizer is not None:
        tokenizer.normalizer = parts.normalizer
    if parts.pre_tokenizer is not None:
        tokenizer.pre_tokenizer = parts.pre_tokenizer
    tokenizer.add_tokens(list(added))
    return tokenizer


def guarded(make: Callable[[], _T], where: str) -> _T:
    """What the library makes of data from a file. Raises FormatError if it will not."""
    try:
        return make()
    except BaseException as error:
        if not _is_library_failure(error):
            raise
        raise FormatError(
            f"{where}: the tokenizers library refuses it: {one_line(error)}"
        ) from None


def _is_library_failure(error: BaseException) -> bool:
    """Whether the library raised it: a plain Exception, or a Rust panic, which is not even one."""
    is_plain = type(error) is Exception or isinstance(error, (ValueError, TypeError, OverflowError))
    return is_plain or type(error).__name__ == "PanicException"


def one_line(error: BaseException) -> str:
    """What an error says, short and printable."""
    return ascii(" ".join(str(error).split()))[1:-1][:200]
