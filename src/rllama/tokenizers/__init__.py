"""Text to token ids and back: one door for every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Callable

from rllama.config import TokenizerSource
from rllama.tokenizers.base import Tokenizer
from rllama.tokenizers.bpe_load import load_bpe, load_tiktoken
from rllama.tokenizers.json_load import load_json
from rllama.tokenizers.spm_load import load_spm, load_vocabulary

_LOADERS: dict[str, Callable[[TokenizerSource, str], Tokenizer]] = {
    "spm": load_spm, "vocab": load_vocabulary, "unigram": load_vocabulary,
    "bpe": load_bpe, "tiktoken": load_tiktoken, "json": load_json,
}  # fmt: skip


def load_tokenizer(source: TokenizerSource) -> Tokenizer:
    """The tokenizer that a file or a checkpoint holds.

    Raises:  FormatError if it is damaged or has more pieces than the model has rows;
             UnsupportedError for settings that this version does not know
    """
    return _LOADERS[source.kind](source, source.path or "vocabulary")
