"""Stories as token ids: the vocabulary trained on them, the training set and the held-out set."""

from __future__ import annotations

import string
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece as spm
from grammar import story
from numpy.typing import NDArray

HELD_OUT_SEED = 1_000_000_000
VOCAB_STORIES = 30_000
PARAGRAPH = "\n\n"


def _vocabulary_lines(count: int) -> Iterator[str]:
    """Stories on one line each.

    Notes:   a newline must stay a byte, so a quotation mark stands in for it: behind both, a word
             has no space before it
    """
    for seed in range(count):
        yield story(seed).replace(PARAGRAPH, ' "')


def train_vocabulary(prefix: Path, size: int) -> None:
    """Write prefix.model: a byte-pair vocabulary with byte fallback, as the Llama family has it."""
    spm.SentencePieceTrainer.train(
        sentence_iterator=_vocabulary_lines(VOCAB_STORIES),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        required_chars="".join(c for c in string.printable if c.isprintable() and c != " "),
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=2,
        minloglevel=1,
    )


def encode(vocabulary: spm.SentencePieceProcessor, seeds: range) -> NDArray[np.uint16]:
    """BOS story EOS, one after the other, of all seeds."""
    bos, eos = vocabulary.bos_id(), vocabulary.eos_id()
    rows = []
    for start in range(seeds.start, seeds.stop, 1000):
        texts = [story(seed) for seed in range(start, min(start + 1000, seeds.stop))]
        for ids in vocabulary.encode(texts):
            rows.append(np.array([bos, *ids, eos], dtype=np.uint16))
    return np.concatenate(rows)


def prepare(work: Path, vocab_size: int, stories: int, held_out: int) -> None:
    """Fill the work folder with vocabulary.model, train.npy and held_out.npy, once."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "vocabulary.model").exists():
        train_vocabulary(work / "vocabulary", vocab_size)
    vocabulary = spm.SentencePieceProcessor(model_file=str(work / "vocabulary.model"))
    first = HELD_OUT_SEED
    for name, seeds in (
        ("held_out", range(first, first + held_out)),
        ("train", range(stories)),
    ):
        if not (work / f"{name}.npy").exists():
            np.save(work / f"{name}.npy", encode(vocabulary, seeds))
