"""Builds byte-level tokenizers: from a GGUF's tokens and merges, from a tiktoken file's ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from rllama.config import TokenizerSource
from rllama.errors import FormatError, UnsupportedError
from rllama.tokenizers.byte_names import ALPHABET, byte_name, named_bytes
from rllama.tokenizers.library import LibraryEncoder, guarded, in_a_row, meaning, share
from rllama.tokenizers.merged import MergedTokenizer, Specials, Tokens
from rllama.tokenizers.patterns import PRES, Pre
from rllama.tokenizers.tiktoken_file import read_ranks, version_of
from rllama.tokenizers.turn_ends import turn_ends
from rllama.tokenizers.vocabulary import (
    CONTROL,
    MAX_PIECE_BYTES,
    MAX_PIECES,
    UNKNOWN,
    USER_DEFINED,
)

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

Merge = tuple[str, str]


def load_bpe(source: TokenizerSource, where: str) -> MergedTokenizer:
    """A tokenizer from tokens, merges and types of a GGUF.

    Notes:   control and unknown tokens are left out of what merges can make; user-defined ones
             are found in any text
    Raises:  FormatError for damage, UnsupportedError for another `tokenizer.ggml.pre`
    """
    pre = _pre(source.pre, where)
    names = dict(enumerate(source.pieces))
    special = {i for i, kind in enumerate(source.types) if kind in (CONTROL, UNKNOWN)}
    added = {i for i, kind in enumerate(source.types) if kind == USER_DEFINED} | special
    _check_names(names, where)
    vocab = {name: i for i, name in names.items() if i not in special}
    merges = [_merge(merge, vocab, where) for merge in source.merges]
    tokens = Tokens(names, frozenset(special), frozenset(added), named_bytes)
    plain = {names[i]: i for i in added - special}
    full = plain | {names[i]: i for i in special}
    encoder = _encoder(pre, vocab, merges, plain, full, where)
    specials = Specials(source.bos_token_id, source.eos_token_id)
    specials.stop = turn_ends((i, names[i]) for i in added)
    specials.add_bos = pre.add_bos if source.add_bos is None else source.add_bos
    return MergedTokenizer(encoder, tokens, specials, source.vocab_size, where)


def load_tiktoken(source: TokenizerSource, where: str) -> MergedTokenizer:
    """A tokenizer from a tiktoken file of Llama 3 or 4, with the special tokens of its version.

    Notes:   runs of more than 25,000 characters are cut as in Meta's code
    """
    ranks = read_ranks(source.model, where)
    version = version_of(len(ranks), where)
    vocab = {byte_name(data): rank for data, rank in ranks.items()}
    first = len(ranks)
    names = {rank: name for name, rank in vocab.items()}
    full = {name: first + i for i, name in enumerate(version.special_names)}
    names |= {token_id: name for name, token_id in full.items()}
    special = frozenset(range(first, first + len(version.special_names)))
    encoder = _encoder(version.pre, vocab, _merges_of(vocab), {}, full, where, longest_run=25_000)
    stop = tuple(full[name] for name in version.stop_names)
    specials = Specials(first, first + 1, source.add_bos is not False, stop)
    tokens = Tokens(names, special, special, named_bytes)
    return MergedTokenizer(encoder, tokens, specials, source.vocab_size, where)


def _pre(name: str, where: str) -> Pre:
    if name not in PRES:
        what = f"tokenizer.ggml.pre is {ascii(name)[:60]}" if name else (
            "tokenizer.ggml.pre is missing; convert the model again"
        )  # fmt: skip
        raise UnsupportedError(f"{where}: {what}; known are {', '.join(sorted(PRES))}")
    return PRES[name]


def _check_names(names: Mapping[int, str], where: str) -> None:
    if not 0 < len(names) <= MAX_PIECES:
        raise FormatError(f"{where}: {len(names)} tokens, expected 1 to {MAX_PIECES}")
    seen: set[str] = set()
    for token_id, name in names.items():
        if not name or name in seen:
            problem = f"repeats {ascii(name)[:40]}" if name else "is empty"
            raise FormatError(f"{where}: token {token_id} {problem}")
        if len(name) > MAX_PIECE_BYTES:
            raise FormatError(f"{where}: token {token_id} has {len(name)} characters, at most "
                              f"{MAX_PIECE_BYTES} are allowed")  # fmt: skip
        seen.add(name)


def _merge(merge: str, vocab: Mapping[str, int], where: str) -> Merge:
    """The two sides of a merge, "a b"; each side and the whole must be tokens."""
    left, space, right = merge.partition(" ")
    if space and left in vocab and right in vocab and left + right in vocab:
        return left, right
    raise FormatError(f"{where}: the merge {ascii(merge)[:60]} names no tokens of the vocabulary")


def _merges_of(vocab: Mapping[str, int]) -> list[Merge]:
    """All ways to put each token together from two others, in the order of their ranks.

    Notes:   of the ways for one token only that can ever occur which merging its own bytes takes;
             the others do no harm, so this merges exactly as tiktoken does
    """
    return [
        (name[:cut], name[cut:])
        for name in vocab
        for cut in range(1, len(name))
        if name[:cut] in vocab and name[cut:] in vocab
    ]


def _encoder(
    pre: Pre, vocab: Mapping[str, int], merges: list[Merge], plain: Mapping[str, int],
    full: Mapping[str, int], where: str, *, longest_run: int = 0,
) -> LibraryEncoder:  # fmt: skip
    """The library with the model's own tokens, and what its ids mean."""
    from tokenizers.models import BPE

    if not ALPHABET.issubset(vocab):
        missing = min(ALPHABET - vocab.keys())
        raise FormatError(f"{where}: the vocabulary has no token for the byte "
                          f"{named_bytes(missing)[0]:02X}")  # fmt: skip
    row = in_a_row(vocab)
    model = guarded(lambda: BPE(vocab=row, merges=merges, ignore_merges=pre.ignore_merges), where)
    parts = _parts(pre)
    ids = meaning(vocab.values(), row, full)
    plain_added, full_added = (share(model, parts, _added(names)) for names in (plain, full))
    return LibraryEncoder(plain_added, full_added, ids, longest_run)


def _added(names: Iterable[str]) -> list[AddedToken]:
    from tokenizers import AddedToken

    return [AddedToken(name, normalized=False, special=False) for name in names]


def _parts(pre: Pre) -> Tokenizer:
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

    steps: list[PreTokenizer] = [Split(Regex(p), behavior="isolated") for p in pre.patterns]
    parts = Tokenizer(BPE())
    parts.pre_tokenizer = Sequence([*steps, ByteLevel(add_prefix_space=False, use_regex=False)])
    return parts
