"""A model whose logits depend on the whole prefix as the cache holds it: a wrong page shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from rllama.backend import KVSpec
from rllama.batch import Batch
from rllama.config import EngineConfig, GenerationDefaults, ModelConfig, SamplingParams
from rllama.engine.engine import Engine
from rllama.engine.request import Request, StepOutput

VOCAB = 61
CONTEXT = 96
CONFIG = ModelConfig(
    arch="hash", dim=8, ffn_dim=8, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=8,
    vocab_size=VOCAB, max_seq_len=CONTEXT,
)  # fmt: skip
_MIX = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def mix(state: int, value: int) -> int:
    """A step of a 64-bit hash."""
    state = ((state ^ value) * _MIX + 0x1234567) & _MASK
    return state ^ (state >> 29)


def hash_row(state: int, n_rows: int) -> np.ndarray:
    """Logits of a prefix by its hash. Shapes: [n_rows] f32"""
    words = (np.uint64(state) + np.arange(n_rows, dtype=np.uint64)) * np.uint64(_MIX)
    words ^= words >> np.uint64(31)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    return ((words >> np.uint64(40)).astype(np.float32) / np.float32(2**24) * 8).astype(np.float32)


def true_row(
    tokens: Sequence[int], n_rows: int = VOCAB, windows: Sequence[int] = (0,)
) -> np.ndarray:
    """The logits after these tokens, computed without any cache."""
    values = list(tokens)
    for window in windows:
        cells = [cell(value, position) for position, value in enumerate(values)]
        values = [seen_state(cells[: p + 1], window) for p in range(len(cells))]
    return hash_row(values[-1], n_rows)


def cell(value: int, position: int) -> int:
    """What the cache holds for a token: its 'key', turned by the position as RoPE does."""
    return mix(value + 1, position)


def seen_state(cells: Sequence[int], window: int) -> int:
    """What a layer makes of the cells that the last token sees."""
    state = 0
    for value in cells[-window:] if window else cells:
        state = mix(state, value)
    return state


class HashStore:
    """Per layer a page per row, a value per position; garbage at first."""

    def __init__(self, spec: KVSpec) -> None:
        self.groups, self.page_len = spec.groups, spec.page_len
        self.group_of = {layer: i for i, g in enumerate(spec.groups) for layer in g.layers}
        self.cells = {
            layer: [[0xDEAD] * spec.page_len for _ in range(spec.groups[i].n_pages)]
            for layer, i in self.group_of.items()
        }
        self.is_closed = False

    def close(self) -> None:
        assert not self.is_closed, "closed twice"
        self.is_closed = True


class HashBackend:
    """Only makes stores."""

    name = "hash"

    def __init__(self) -> None:
        self.stores: list[HashStore] = []

    def kv_store(self, spec: KVSpec) -> HashStore:
        self.stores.append(HashStore(spec))
        return self.stores[-1]


class HashModel:
    """Per layer: writes a cell per token into the cache, reads those seen back, and hashes them.

    Notes: raises `error` once if it is set; counts calls and tokens; `before` runs in each forward
    """

    def __init__(self, **changes: object) -> None:
        self.cfg = replace(CONFIG, **changes)  # type: ignore[arg-type]
        self.error: Exception | None = None
        self.batch_tokens: list[int] = []
        self.batch_seqs: list[int] = []
        self.before: Callable[[Batch], None] = lambda batch: None

    def forward(self, batch: Batch, kv: HashStore) -> np.ndarray:
        self.before(batch)
        self.batch_tokens.append(batch.n_tokens)
        self.batch_seqs.append(batch.n_seqs)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        check_batch(batch, kv)
        rows = np.full((batch.n_tokens, self.cfg.vocab_size), np.nan, np.float32)
        for b in range(batch.n_seqs):
            span = slice(batch.seq_start[b], batch.seq_start[b + 1])
            values, positions = batch.token_ids[span].tolist(), batch.positions[span].tolist()
            for layer in range(self.cfg.n_layers):
                values = self.layer(layer, values, positions, batch.page_tables[:, b], kv)
            rows[span] = [hash_row(value, self.cfg.vocab_size) for value in values]
        return rows[batch.logit_rows]

    def layer(
        self, layer: int, values: list[int], positions: list[int], tables: np.ndarray, kv: HashStore
    ) -> list[int]:
        """The values of some tokens of one sequence after a layer."""
        n, cells, window = kv.page_len, kv.cells[layer], self.cfg.window(layer)
        table = tables[kv.group_of[layer]].tolist()
        for value, p in zip(values, positions, strict=True):
            cells[table[p // n]][p % n] = cell(value, p)
        first = max(0, positions[0] - window + 1) if window else 0
        seen = [cells[table[p // n]][p % n] for p in range(first, positions[-1] + 1)]
        return [seen_state(seen[: p + 1 - first], window) for p in positions]


def check_batch(batch: Batch, kv: HashStore) -> None:
    """What every batch must be like."""
    assert batch.token_ids.dtype == batch.positions.dtype == np.int32
    assert batch.seq_start.dtype == batch.page_tables.dtype == batch.logit_rows.dtype == np.int32
    assert len(batch.token_ids) == len(batch.positions) == batch.seq_start[-1]
    assert batch.page_tables.shape[:2] == (len(kv.groups), batch.n_seqs)
    assert np.all(np.diff(batch.seq_start) > 0)
    for b in range(batch.n_seqs):
        span = batch.positions[batch.seq_start[b] : batch.seq_start[b + 1]]
        assert np.all(np.diff(span) == 1)
        for group, table in zip(kv.groups, batch.page_tables[:, b], strict=True):
            first = group.first_seen(int(span[0])) // kv.page_len
            needed = table[first : int(span[-1]) // kv.page_len + 1]
            assert np.all((needed >= 0) & (needed < group.n_pages))
            assert np.all(table[:first] == -1), "pages that nobody sees are held"


class LetterTokenizer:
    """One token, one ASCII character, from '0' on."""

    n_pieces = vocab_size = VOCAB
    bos_token_id = None
    eos_token_id = None
    stop_token_ids = ()
    add_bos = False

    def encode(self, text: str, **_: bool) -> list[int]:
        return [ord(c) - 48 for c in text]

    def piece_bytes(self, token_id: int) -> bytes:
        return bytes([48 + token_id])

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.piece_bytes(i) for i in ids)

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode()

    def is_special(self, token_id: int) -> bool:
        return False


BASE = EngineConfig(max_batch_tokens=16, max_seqs=8, page_len=4, n_pages=200, kv_dtype="f32")


def ask(prompt: Sequence[int], *, choice_index: int = 0, **params: object) -> Request:
    """A request; greedy with 12 new tokens unless told otherwise."""
    params = {"temperature": 0.0, "max_new_tokens": 12, **params}
    sampling = SamplingParams(**params).resolved(GenerationDefaults())  # type: ignore[arg-type]
    return Request(tuple(prompt), sampling, choice_index)


def drain(engine: Engine) -> dict[int, list[StepOutput]]:
    """Step until nothing is left; outputs by sequence."""
    outputs: dict[int, list[StepOutput]] = {}
    for _ in range(20_000):
        if not engine.has_work:
            return outputs
        for output in engine.step():
            outputs.setdefault(output.seq_id, []).append(output)
    raise AssertionError("the engine never ends")


def ids_of(outputs: Sequence[StepOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def run(engine: Engine, requests: Sequence[Request]) -> list[list[int]]:
    """Token ids of requests that are submitted together."""
    seqs = [engine.submit(request) for request in requests]
    outputs = drain(engine)
    return [ids_of(outputs[seq.id]) for seq in seqs]
