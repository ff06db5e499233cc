"""Builds an SpmTokenizer from a SentencePiece .model or from a vocabulary."""

from __future__ import annotations

from typing import cast

from rllama.config import TokenizerSource
from rllama.errors import FormatError
from rllama.tokenizers.charsmap import check_charsmap
from rllama.tokenizers.spm import Encoder, Specials, SpmTokenizer
from rllama.tokenizers.spm_model import read_spm_model
from rllama.tokenizers.spm_proto import Rules, model_proto, producible
from rllama.tokenizers.turn_ends import turn_ends
from rllama.tokenizers.vocabulary import (
    CONTROL,
    USER_DEFINED,
    Vocabulary,
    check_vocabulary,
    vocabulary_of,
)


def load_spm(source: TokenizerSource, where: str) -> SpmTokenizer:
    """A tokenizer from the bytes of a SentencePiece .model."""
    model = read_spm_model(source.model, where)
    encoder = _processor(source.model, where)
    specials = Specials(_id_or_none(encoder.bos_id()), _id_or_none(encoder.eos_id()))
    specials.strips_space, specials.unk_surface = model.strips_space, model.unk_surface
    return _tokenizer(encoder, model.vocab, specials, source, where)


def load_vocabulary(source: TokenizerSource, where: str) -> SpmTokenizer:
    """A tokenizer from pieces, scores and types."""
    vocab = vocabulary_of(source, where)
    check_vocabulary(vocab, where)
    rules = Rules(
        source.add_space_prefix, source.kind == "unigram", source.charsmap,
        source.remove_extra_whitespaces,
    )  # fmt: skip
    if rules.charsmap:
        check_charsmap(rules.charsmap, where)
    usable = producible(vocab, source.unk_token_id, where)
    encoder = _processor(model_proto(usable, rules), where)
    specials = Specials(_control(vocab, b"<s>"), _control(vocab, b"</s>"))
    specials.strips_space = rules.add_space_prefix or rules.remove_extra_whitespaces
    own = (i for i, kind in enumerate(vocab.types) if kind in (CONTROL, USER_DEFINED))
    specials.stop = turn_ends((i, vocab.pieces[i].decode()) for i in own)
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


def _processor(proto: bytes, where: str) -> Encoder:
    import sentencepiece  # 30 ms: only once text is needed

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(proto)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise FormatError(f"{where}: the SentencePiece library refuses it: {reason}") from None
    return cast(Encoder, processor)
