"""MergedTokenizer: what the tokenizers library encodes, decoded by a table of our own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rllama.errors import FormatError
from rllama.tokenizers.pieces import PieceTable


class Encoder(Protocol):
    """Text to ids, without BOS."""

    def encode(self, text: str, *, parse_special: bool) -> list[int]: ...


@dataclass(slots=True)
class Tokens:
    """The tokens of a vocabulary, by id; ids that nothing has show nothing.

    Notes:   names are as the file spells them; `special` ids show nothing, `added` ids their name
             as it is, all others what `spelled` makes of it; strips_space: encoding puts a space
             before the text, decoding takes it away, unless it came from an id in `real_spaces`
    """

    names: Mapping[int, str]
    special: frozenset[int]
    added: frozenset[int]
    spelled: Callable[[str], bytes]
    strips_space: bool = False
    real_spaces: frozenset[int] = frozenset()


@dataclass(slots=True)
class Specials:
    """Which tokens begin and end a text; stop ids end one too."""

    bos: int | None = None
    eos: int | None = None
    add_bos: bool = False
    stop: tuple[int, ...] = ()


class MergedTokenizer:
    """A vocabulary of a tokenizer.json, a tiktoken file, or the byte-level kind in a GGUF.

    Notes:   in text, lone surrogates become U+FFFD and surrogate pairs the character they mean;
             the names of special tokens are ordinary text unless parse_special
    """

    def __init__(
        self, encoder: Encoder, tokens: Tokens, specials: Specials, vocab_size: int | None,
        where: str,
    ) -> None:  # fmt: skip
        self.n_pieces = max(tokens.names) + 1
        if vocab_size is not None and vocab_size < self.n_pieces:
            raise FormatError(f"{where}: {self.n_pieces} pieces for a model with {vocab_size}: "
                              "not this model's tokenizer")  # fmt: skip
        self.vocab_size = self.n_pieces if vocab_size is None else vocab_size
        for name, token_id in (("bos", specials.bos), ("eos", specials.eos)):
            if token_id is not None and token_id not in tokens.names:
                raise FormatError(f"{where}: {name} id {token_id} is no token of the vocabulary")
        self.bos_token_id, self.eos_token_id = specials.bos, specials.eos
        self.stop_token_ids = specials.stop
        self.add_bos = specials.add_bos and specials.bos is not None
        self._encoder, self._tokens = encoder, tokens
        self._table = PieceTable(self._shown, self.vocab_size)

    def _shown(self, token_id: int) -> bytes:
        tokens = self._tokens
        name = tokens.names.get(token_id)
        if name is None or token_id in tokens.special:
            return b""
        return name.encode() if token_id in tokens.added else tokens.spelled(name)

    def encode(self, text: str, *, add_bos: bool = False, parse_special: bool = False) -> list[int]:
        """The ids of a text, after BOS if asked for and the vocabulary has one.

        Notes:   with parse_special, names of special tokens become their ids
        Raises:  ConfigError if the text has 2^31 bytes or more
        """
        ids = self._encoder.encode(text, parse_special=parse_special) if text else []
        return [self.bos_token_id, *ids] if add_bos and self.bos_token_id is not None else ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a run of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of a run of ids, without the space that encoding put in front.

        Raises:  ConfigError for an id outside the vocabulary
        """
        data = b"".join(map(self._table.__getitem__, ids))
        if self._tokens.strips_space and data.startswith(b" "):
            first = next(i for i in ids if self._table[i])
            return data if first in self._tokens.real_spaces else data[1:]
        return data

    def piece_bytes(self, token_id: int) -> bytes:
        """What one id adds to a text; empty for special tokens and padding rows.

        Raises:  ConfigError for an id outside the vocabulary
        """
        return self._table[token_id]

    def is_special(self, token_id: int) -> bool:
        """Whether an id stands for no text: special, without a token, or a padding row."""
        self._table[token_id]  # refuses an id outside
        return token_id not in self._tokens.names or token_id in self._tokens.special

    def token_text(self, token_id: int) -> str:
        """The name of a token as the vocabulary spells it, special or not; empty for padding rows.

        Raises:  ConfigError for an id outside the vocabulary
        """
        self._table[token_id]
        return self._tokens.names.get(token_id, "")
