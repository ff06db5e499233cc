"""What every tokenizer can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """Text to token ids and back.

    Notes:   pieces are bytes, because one character may be spread over several tokens;
             `decode_bytes` of a run of ids is the concatenation of `piece_bytes` of each, except
             that the space which encoding put before the text is not given back;
             ids from n_pieces up to vocab_size only pad the model's embedding: they show nothing;
             stop_token_ids end a text beside EOS; text becomes special tokens with parse_special
             alone; `token_text` is what a chat template calls a token, such as "<s>"
    """

    n_pieces: int
    vocab_size: int
    bos_token_id: int | None
    eos_token_id: int | None
    stop_token_ids: tuple[int, ...]
    add_bos: bool

    def encode(
        self, text: str, *, add_bos: bool = False, parse_special: bool = False
    ) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def decode_bytes(self, ids: Sequence[int]) -> bytes: ...
    def piece_bytes(self, token_id: int) -> bytes: ...
    def is_special(self, token_id: int) -> bool: ...
    def token_text(self, token_id: int) -> str: ...
