"""KVGroup: layers whose keys and values come and go together, and the pages that they need."""

from __future__ import annotations

from dataclasses import dataclass

from rllama.config import EngineConfig, ModelConfig


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers that see equally far back, and the size of their part of the cache.

    Units:   window positions that a token sees, its own among them, 0 for all; n_pages pages
    """

    layers: tuple[int, ...]
    window: int
    n_pages: int

    def first_seen(self, position: int) -> int:
        """The first position that a token at this one sees."""
        return max(0, position - self.window + 1) if self.window else 0


def pages_over(n_positions: int, page_len: int) -> int:
    """Pages that so many consecutive positions touch at most, wherever they begin."""
    return (n_positions + page_len - 2) // page_len + 1


def kv_groups(
    cfg: ModelConfig, engine: EngineConfig, *, n_pages: int, max_seq_len: int
) -> tuple[KVGroup, ...]:
    """The groups of a model, those that see farthest first.

    Notes:   n_pages is the size for layers that see everything. A window needs no more than its own
             length for every sequence and once the tokens of a step; where the cache is one context
             long, that is for one sequence
    """
    page_len = engine.page_len
    n_seqs = engine.max_seqs if n_pages * page_len > max_seq_len + page_len - 1 else 1
    step_pages = -(-engine.max_batch_tokens // page_len)
    groups = []
    for window in sorted(set(cfg.windows or (0,)), key=lambda w: w or 2**31, reverse=True):
        layers = tuple(i for i in range(cfg.n_layers) if cfg.window(i) == window)
        most = n_seqs * pages_over(window, page_len) + step_pages if window else n_pages
        groups.append(KVGroup(layers, window, min(n_pages, most)))
    return tuple(groups)
