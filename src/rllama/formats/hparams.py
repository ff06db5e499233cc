"""From a file's numbers to a ModelConfig: what the families share, and llama2.c."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rllama.config import ModelConfig
from rllama.errors import ConfigError, UnsupportedError
from rllama.formats.fields import Fields, shown

ARCHS = ("llama",)


def build(where: str, **numbers: Any) -> ModelConfig:
    """A ModelConfig whose own complaints also name the file. Raises ConfigError."""
    try:
        return ModelConfig(**numbers)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def require_arch(arch: str, where: str) -> None:
    """Raises UnsupportedError, naming the architecture, if we have no model for it."""
    if arch not in ARCHS:
        raise UnsupportedError(
            f"{where}: the architecture {shown(arch)} is not supported; known: {', '.join(ARCHS)}"
        )


def head_dim_of(fields: Fields, key: str, dim: int, n_heads: int, dim_key: str) -> int:
    """The head width: stated, or dim shared among the heads. Raises ConfigError."""
    if key in fields:
        head_dim = fields.whole(key, high=1024)
        if head_dim % 2:
            raise fields.fail(key, f"is {head_dim}; it must be even")
        return head_dim
    if dim % n_heads:
        raise fields.fail(
            dim_key, f"{dim} is no multiple of the {n_heads} heads, and {key} is missing"
        )
    return dim // n_heads


@dataclass(frozen=True, slots=True)
class Llama2cHeader:
    """The seven numbers of a llama2.c header and what its version adds.

    Units: start is the offset of the first array, in bytes
    """

    version: int
    dim: int
    ffn_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    shared_head: bool
    start: int
    group_size: int = 0


def llama2c_config(header: Llama2cHeader, where: str, name: str) -> ModelConfig:
    """Translate a llama2.c header. Raises ConfigError.

    Notes:   the files' own runner stops at 1 (BOS, which separates stories) as well as at 2
    """
    if header.dim % header.n_heads or header.n_heads % header.n_kv_heads:
        raise ConfigError(
            f"{where}: dim {header.dim}, n_heads {header.n_heads}, n_kv_heads {header.n_kv_heads} "
            "at offset 0: each must be a multiple of the next"
        )
    return build(
        where, arch="llama", dim=header.dim, ffn_dim=header.ffn_dim, n_layers=header.n_layers,
        n_heads=header.n_heads, n_kv_heads=header.n_kv_heads,
        head_dim=header.dim // header.n_heads, vocab_size=header.vocab_size,
        max_seq_len=header.seq_len, norm_eps=1e-5, rope_theta=10000.0, rope_style="interleaved",
        tied_head=header.shared_head, bos_token_id=1 if header.vocab_size > 1 else None,
        eos_token_ids=tuple(i for i in (1, 2) if i < header.vocab_size), add_bos=True, name=name,
    )  # fmt: skip
