"""Tokens that end a turn, known by their names: many GGUFs name none but EOS.

Source: the names that llama.cpp (llama-vocab.cpp) takes for ends of generation
"""

from __future__ import annotations

from collections.abc import Iterable

_NAMES = (
    "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|eom|>", "<|im_end|>", "<|end|>", "<|return|>",
    "<|call|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>",
    "<end_of_utterance>",
)  # fmt: skip


def turn_ends(names: Iterable[tuple[int, str]]) -> tuple[int, ...]:
    """The ids of those among the special tokens that end a turn.

    Notes:   where messages end with `<|end|>` and turns with `<|return|>`, the first is no end
    """
    found = {name: token_id for token_id, name in names if name in _NAMES}
    if {"<|return|>", "<|call|>"} <= found.keys():
        found.pop("<|end|>", None)
    return tuple(sorted(found.values()))
