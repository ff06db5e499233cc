"""Text to token ids and back: one door for every kind of tokenizer."""

from __future__ import annotations

from rllama.config import TokenizerSource
from rllama.tokenizers import spm_load
from rllama.tokenizers.base import Tokenizer


def load_tokenizer(source: TokenizerSource) -> Tokenizer:
    """The tokenizer that a file or a checkpoint holds.

    Raises:  FormatError if it is damaged or has more pieces than the model has rows;
             UnsupportedError for settings that this version does not know
    """
    where = source.path or "vocabulary"
    if source.kind == "spm":
        return spm_load.load_spm(source, where)
    return spm_load.load_vocabulary(source, where)
