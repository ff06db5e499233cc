"""tiktoken files: a line of base64 and a rank for each token; the special ones are not in them."""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from dataclasses import dataclass

from rllama.errors import FormatError, UnsupportedError
from rllama.tokenizers.patterns import LLAMA3, LLAMA4, Pre
from rllama.tokenizers.vocabulary import MAX_PIECE_BYTES, MAX_PIECES


@dataclass(frozen=True, slots=True)
class Version:
    """What belongs to a file and is not in it.

    Notes:   special names follow the last rank
    """

    pre: Pre
    special_names: tuple[str, ...]
    stop_names: tuple[str, ...]


def read_ranks(data: bytes, where: str) -> dict[bytes, int]:
    """The tokens and their ranks.

    Raises:  FormatError if a line is no base64 and number, or the ranks are not 0, 1, 2, …
    """
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if len(lines) > MAX_PIECES:
        raise FormatError(f"{where}: {len(lines)} lines; at most {MAX_PIECES} are accepted")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines):
        word, _, rank = line.rstrip(b"\r").partition(b" ")
        try:
            token = binascii.a2b_base64(word, strict_mode=True)
        except binascii.Error as error:
            raise FormatError(f"{where}: line {number + 1} is no base64: {error}") from None
        if not rank.isdigit() or len(rank) > 9 or int(rank) != number:
            raise FormatError(f"{where}: line {number + 1} has the rank {ascii(rank)[2:-1][:20]}, "
                              f"expected {number}")  # fmt: skip
        if not 0 < len(token) <= MAX_PIECE_BYTES or token in ranks:
            problem = "repeats a token" if token in ranks else f"has a token of {len(token)} bytes"
            raise FormatError(f"{where}: line {number + 1} {problem}")
        ranks[token] = number
    return ranks


def version_of(n_ranks: int, where: str) -> Version:
    """The version that a file of so many tokens belongs to. Raises UnsupportedError."""
    if n_ranks == 128_000:
        return _llama3()
    if n_ranks == 200_000:
        return _llama4()
    raise UnsupportedError(f"{where}: a tiktoken file of {n_ranks} tokens; those of Llama 3 "
                           "(128000) and Llama 4 (200000) are known")  # fmt: skip


def _llama3() -> Version:
    """The 256 special tokens of Llama 3; three of them were given a use, and a name, in 3.1."""
    reserved = (f"<|reserved_special_token_{i}|>" for i in range(251))
    given = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 6: "<|start_header_id|>",
             7: "<|end_header_id|>", 9: "<|eot_id|>"}  # fmt: skip
    names = [given.get(i) or next(reserved) for i in range(256)]
    names[4], names[8], names[10] = "<|finetune_right_pad_id|>", "<|eom_id|>", "<|python_tag|>"
    pre = Pre((LLAMA3,), ignore_merges=True)
    return Version(pre, tuple(names), ("<|eot_id|>", "<|eom_id|>"))


def _numbered(kind: str, count: int, first: int = 0) -> Iterator[str]:
    return (f"<|{kind}reserved_special_token_{i}|>" for i in range(first, first + count))


def _llama4() -> Version:
    """The 2048 special tokens of Llama 4, as Meta's code has them."""
    names = [
        "<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>",
        "<|fim_suffix|>", "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>",
        *_numbered("text_post_train_", 6), "<|python_start|>", "<|python_end|>",
        "<|finetune_right_pad|>", *_numbered("text_post_train_", 61, 8),
        "<|image_start|>", "<|image_end|>", *_numbered("vision_", 2), "<|tile_x_separator|>",
        "<|tile_y_separator|>", *_numbered("vision_", 4, 2), "<|image|>",
        *_numbered("vision_", 1, 6), "<|patch|>", *_numbered("vision_", 1041, 7),
        *_numbered("reasoning_", 8), "<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>",
    ]  # fmt: skip
    names += _numbered("", 2048 - len(names))
    pre = Pre((LLAMA4,), ignore_merges=True)
    return Version(pre, tuple(names), ("<|eot|>", "<|eom|>"))
