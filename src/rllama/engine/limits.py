"""What an engine may hold: the context, the size of the cache, and sane options."""

from __future__ import annotations

from rllama.backend import KVSpec
from rllama.config import EngineConfig, ModelConfig
from rllama.errors import ConfigError
from rllama.kv_groups import kv_groups

DEFAULT_POSITIONS = 8192  # of the cache where n_pages is 0, unless one context needs more


def check_config(config: EngineConfig, cfg: ModelConfig) -> None:
    """Raise ConfigError if a number is out of range or beyond the model."""
    for name in ("max_batch_tokens", "max_seqs", "max_waiting", "page_len"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, not {getattr(config, name)}")
    for name in ("n_pages", "max_seq_len"):
        if getattr(config, name) < 0:
            raise ConfigError(f"{name} must not be negative, but is {getattr(config, name)}")
    if config.max_seq_len > cfg.max_seq_len:
        raise ConfigError(
            f"max_seq_len {config.max_seq_len} is beyond the model's {cfg.max_seq_len}"
        )


def context_and_cache(config: EngineConfig, cfg: ModelConfig) -> tuple[int, KVSpec]:
    """Positions of one sequence at most, and the cache that goes with it.

    Notes:   kv_dtype "auto" is f16 here; the loader, which knows the weights, decides before
    Raises:  ConfigError if the pages cannot hold the context that is asked for
    """
    page_len = config.page_len
    max_seq_len = config.max_seq_len or cfg.max_seq_len
    n_positions = max(max_seq_len, min(config.max_seqs * max_seq_len, DEFAULT_POSITIONS))
    n_pages = config.n_pages or -(-n_positions // page_len)
    if n_pages * page_len < max_seq_len:
        if config.max_seq_len:
            raise ConfigError(
                f"{n_pages} pages of {page_len} positions are too few for max_seq_len {max_seq_len}"
            )
        max_seq_len = n_pages * page_len
    dtype = "f16" if config.kv_dtype == "auto" else config.kv_dtype
    groups = kv_groups(cfg, config, n_pages=n_pages, max_seq_len=max_seq_len)
    return max_seq_len, KVSpec(groups, cfg.n_kv_heads, cfg.head_dim, page_len, dtype)
