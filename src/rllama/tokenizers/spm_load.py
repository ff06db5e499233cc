"""Builds an SpmTokenizer from a .model, a tokenizer.bin, or a vocabulary inside a checkpoint."""

from __future__ import annotations

from typing import cast

from rllama.config import TokenizerSource
from rllama.errors import FormatError
from rllama.tokenizers.llama2c_bin import BOS, EOS, UNK, read_llama2c
from rllama.tokenizers.spm import Encoder, Specials, SpmTokenizer
from rllama.tokenizers.spm_model import read_spm_model
from rllama.tokenizers.spm_proto import model_proto, producible
from rllama.tokenizers.vocabulary import CONTROL, Vocabulary, check_vocabulary, vocabulary_of


def load_spm(data: bytes, source: TokenizerSource, where: str) -> SpmTokenizer:
    """A tokenizer from the bytes of a SentencePiece .model."""
    model = read_spm_model(data, where)
    encoder = _processor(data, where)
    specials = Specials(_id_or_none(encoder.bos_id()), _id_or_none(encoder.eos_id()))
    specials.strips_space, specials.unk_surface = model.strips_space, model.unk_surface
    return _tokenizer(encoder, model.vocab, specials, source, where)


def load_llama2c(data: bytes, source: TokenizerSource, where: str) -> SpmTokenizer:
    """A tokenizer from the bytes of a llama2.c tokenizer.bin."""
    vocab = read_llama2c(data, where, source.vocab_size)
    encoder = _built(vocab, UNK, where, add_space_prefix=True)
    bos, eos = (i if i < len(vocab.pieces) else None for i in (BOS, EOS))
    return _tokenizer(encoder, vocab, Specials(bos, eos), source, where)


def load_vocabulary(source: TokenizerSource, where: str) -> SpmTokenizer:
    """A tokenizer from the vocabulary inside a checkpoint."""
    vocab = vocabulary_of(source, where)
    check_vocabulary(vocab, where)
    prefix = source.add_space_prefix
    encoder = _built(vocab, source.unk_token_id, where, add_space_prefix=prefix)
    specials = Specials(_control(vocab, b"<s>"), _control(vocab, b"</s>"), strips_space=prefix)
    return _tokenizer(encoder, vocab, specials, source, where)


def _control(vocab: Vocabulary, name: bytes) -> int | None:
    found = vocab.pieces.index(name) if name in vocab.pieces else None
    return found if found is not None and vocab.types[found] == CONTROL else None


def _id_or_none(token_id: int) -> int | None:
    return None if token_id < 0 else token_id


def _tokenizer(
    encoder: Encoder, vocab: Vocabulary, specials: Specials, source: TokenizerSource, where: str
) -> SpmTokenizer:
    n_pieces, n_rows = len(vocab.pieces), source.vocab_size
    if n_rows is not None and n_rows < n_pieces:
        raise FormatError(f"{where}: {n_pieces} pieces for a model with {n_rows}: "
                          "not this model's tokenizer")  # fmt: skip
    for name in ("bos", "eos"):
        token_id = getattr(source, f"{name}_token_id")
        if token_id is not None:
            setattr(specials, name, token_id)
        token_id = getattr(specials, name)
        if token_id is not None and not 0 <= token_id < n_pieces:
            raise FormatError(f"{where}: {name} id {token_id} is outside the {n_pieces} pieces")
    if source.add_bos is not None:
        specials.add_bos = source.add_bos
    return SpmTokenizer(encoder, vocab, specials, n_rows)


def _built(vocab: Vocabulary, unk: int | None, where: str, *, add_space_prefix: bool) -> Encoder:
    usable = producible(vocab, unk, where)
    return _processor(model_proto(usable, add_space_prefix=add_space_prefix), where)


def _processor(proto: bytes, where: str) -> Encoder:
    import sentencepiece  # 30 ms: only once text is needed

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(proto)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise FormatError(f"{where}: the SentencePiece library refuses it: {reason}") from None
    return cast(Encoder, processor)
