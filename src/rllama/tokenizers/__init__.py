"""Text to token ids and back: one door for every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from rllama.config import TokenizerSource
from rllama.tokenizers.base import Tokenizer

# Kind of source -> "module:function"; only the one that is needed is imported.
_LOADERS: dict[str, str] = {
    "spm": "spm_load:load_spm",
    "vocab": "spm_load:load_vocabulary",
    "unigram": "spm_load:load_vocabulary",
    "bpe": "bpe_load:load_bpe",
    "tiktoken": "bpe_load:load_tiktoken",
    "json": "json_load:load_json",
}


def load_tokenizer(source: TokenizerSource) -> Tokenizer:
    """The tokenizer that a file or a checkpoint holds.

    Raises:  FormatError if it is damaged or has more pieces than the model has rows;
             UnsupportedError for settings that this version does not know
    """
    module, _, name = _LOADERS[source.kind].partition(":")
    load: Callable[[TokenizerSource, str], Tokenizer]
    load = getattr(import_module(f"rllama.tokenizers.{module}"), name)
    return load(source, source.path or "vocabulary")
