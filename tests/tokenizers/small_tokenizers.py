"""Small tokenizers of every shape that model families have, trained by the tokenizers library."""

from __future__ import annotations

import json
import random
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import processors as post
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer, UnigramTrainer

from rllama.tokenizers.patterns import LLAMA3, PRES

SPECIAL = ("<|begin|>", "<|end|>", "<|end|>x", "[INST]")
ADDED = ("<tool>", "  ", "\u00e9\u00e9", "tab\t")
_WORDS = [
    "the", "wolf", "ran", "over", "a", "hill", "and", "river", "wolf's", "don't", "HTTPServer",
    "über", "naïve", "中文", "日本語", "return", "self", "x", "1999", "42", "def", "\u2581", "😀",
    "<tool>", "e\u0301", "\n\n", "\t", "once", "upon", "time", "there", "was",
]  # fmt: skip


def corpus(seed: int = 3) -> list[str]:
    """Sentences for training."""
    rng = random.Random(seed)
    return [" ".join(rng.choice(_WORDS) for _ in range(12)) for _ in range(400)]


def _finish(tokenizer: Tokenizer, *, add_bos: bool) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(n, normalized=False, special=True) for n in SPECIAL])
    tokenizer.add_tokens([AddedToken(ADDED[0], normalized=False)])
    tokenizer.add_tokens([AddedToken(ADDED[1], normalized=False)])
    tokenizer.add_tokens([AddedToken(ADDED[2], lstrip=True, single_word=True)])
    tokenizer.add_tokens([AddedToken(ADDED[3], rstrip=True)])
    if add_bos:
        bos = (SPECIAL[0], tokenizer.token_to_id(SPECIAL[0]))
        tokenizer.post_processor = post.TemplateProcessing(f"{SPECIAL[0]} $A", special_tokens=[bos])
    return tokenizer


def byte_level(pattern: str = LLAMA3, *, ignore_merges: bool = False, nfc: bool = False) -> str:
    """The tokenizer.json of a byte-level BPE, as in Llama 3 or Qwen."""
    tokenizer = Tokenizer(BPE(ignore_merges=ignore_merges))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    steps = [pre_tokenizers.Split(Regex(pattern), behavior="isolated")]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    return _finish(tokenizer, add_bos=True).to_str()


def gpt2_like() -> str:
    """The tokenizer.json of a byte-level BPE with digits apart, as in StarCoder or SmolLM."""
    tokenizer = Tokenizer(BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    return _finish(tokenizer, add_bos=False).to_str()


def byte_fallback(*, metaspace: bool = False) -> str:
    """The tokenizer.json of a BPE with byte fallback, as in Llama 2 and Mistral, old or new."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+"), "isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    trainer = BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    fields = json.loads(tokenizer.to_str())
    fields["added_tokens"] = fields["added_tokens"][:3]  # bytes are pieces, not added tokens
    if not metaspace:
        fields["pre_tokenizer"] = None
    return _finish(Tokenizer.from_str(json.dumps(fields)), add_bos=True).to_str()


def unigram() -> str:
    """The tokenizer.json of a Unigram model."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(corpus(), trainer)
    return _finish(tokenizer, add_bos=False).to_str()


MAKERS: dict[str, Any] = {
    "llama3": lambda: byte_level(ignore_merges=True),
    "qwen2": lambda: byte_level(PRES["qwen2"].patterns[0], nfc=True),
    "llama4": lambda: byte_level(PRES["llama4"].patterns[0]),
    "smollm": gpt2_like,
    "llama2": byte_fallback,
    "mistral": lambda: byte_fallback(metaspace=True),
    "unigram": unigram,
}
