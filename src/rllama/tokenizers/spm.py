"""SentencePiece text to ids and back; the library encodes, the tables here decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rllama.tokenizers.pieces import PieceTable
from rllama.tokenizers.special_finder import SpecialFinder
from rllama.tokenizers.text import utf8
from rllama.tokenizers.vocabulary import (
    BYTE,
    CONTROL,
    DEFAULT_UNK_SURFACE,
    SPACE,
    UNKNOWN,
    Vocabulary,
    byte_value,
)


class Encoder(Protocol):
    """The part of the library's processor that is used."""

    def encode(self, text: bytes, *, out_type: type[int]) -> list[int]: ...
    def bos_id(self) -> int: ...
    def eos_id(self) -> int: ...


@dataclass(slots=True)
class Specials:
    """Special ids and how a vocabulary wants to be used.

    Notes: strips_space: encoding puts a space before the text, decoding takes it away;
           stop: ids that end a text beside EOS
    """

    bos: int | None = None
    eos: int | None = None
    add_bos: bool = True
    strips_space: bool = True
    unk_surface: bytes = DEFAULT_UNK_SURFACE
    stop: tuple[int, ...] = ()


class SpmTokenizer:
    """A SentencePiece vocabulary, wherever it came from.

    Notes:   in text, lone surrogates become U+FFFD and surrogate pairs the character they mean;
             U+2581 cannot be told from a space; the names of control pieces are ordinary text
             unless parse_special
    """

    def __init__(
        self, encoder: Encoder, vocab: Vocabulary, specials: Specials, vocab_size: int | None
    ) -> None:
        self.n_pieces = len(vocab.pieces)
        self.vocab_size = self.n_pieces if vocab_size is None else vocab_size
        self.bos_token_id = specials.bos
        self.eos_token_id = specials.eos
        self.stop_token_ids = specials.stop
        self.add_bos = specials.add_bos and specials.bos is not None
        self._encoder, self._vocab, self._strips_space = encoder, vocab, specials.strips_space
        self._unk_surface = specials.unk_surface
        self._table = PieceTable(self._shown, self.vocab_size)
        self._special_finder: SpecialFinder | None = None

    def _shown(self, token_id: int) -> bytes:
        if token_id >= self.n_pieces:
            return b""  # a row that only pads the embedding
        piece, kind = self._vocab.pieces[token_id], self._vocab.types[token_id]
        if kind == CONTROL:
            return b""
        if kind == UNKNOWN:
            return self._unk_surface
        if kind == BYTE:
            return bytes((byte_value(piece) or 0,))
        return piece.replace(SPACE, b" ")

    def encode(self, text: str, *, add_bos: bool = False, parse_special: bool = False) -> list[int]:
        """The ids of a text, after BOS if asked for and the vocabulary has one.

        Notes:   with parse_special, names of control pieces become their ids, and what follows
                 one is encoded as a text of its own
        Raises:  ConfigError if the text has 2^31 bytes or more
        """
        ids = [] if self.bos_token_id is None or not add_bos else [self.bos_token_id]
        if not parse_special:
            ids += self._encode(text)
            return ids
        if self._special_finder is None:
            self._special_finder = SpecialFinder(self._vocab)
        for part in self._special_finder.split(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._encode(part)
        return ids

    def _encode(self, text: str) -> list[int]:
        data = utf8(text)
        return self._encoder.encode(data, out_type=int) if data else []

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a run of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of a run of ids, without the space that encoding put in front.

        Raises:  ConfigError for an id outside the vocabulary
        """
        data = b"".join(map(self._table.__getitem__, ids))
        if self._strips_space and data.startswith(b" ") and self._starts_with_mark(ids):
            return data[1:]
        return data

    def _starts_with_mark(self, ids: Sequence[int]) -> bool:
        # a space that came from a byte piece or from the unknown piece is real
        first = next(i for i in ids if self._table[i])
        return self._vocab.types[first] not in (BYTE, UNKNOWN)

    def piece_bytes(self, token_id: int) -> bytes:
        """What one id adds to a text; empty for control pieces and padding rows.

        Raises:  ConfigError for an id outside the vocabulary
        """
        return self._table[token_id]

    def is_special(self, token_id: int) -> bool:
        """Whether an id stands for no text: control, unknown, or a padding row."""
        self._table[token_id]  # refuses an id outside
        return token_id >= self.n_pieces or self._vocab.types[token_id] in (CONTROL, UNKNOWN)

    def token_text(self, token_id: int) -> str:
        """The name of a token as the vocabulary spells it, special or not; empty for padding rows.

        Raises:  ConfigError for an id outside the vocabulary
        """
        self._table[token_id]  # refuses an id outside
        return self._vocab.pieces[token_id].decode() if token_id < self.n_pieces else ""
