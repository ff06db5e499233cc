"""Models whose layers see through windows: the same tokens alone, together, chunked, preempted and
from the prefix cache, and a cache that stays small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from conftest import MakeEngine
from formats.writers import random_model, tiny_config
from hash_model import BASE, HashBackend, HashModel, ask, drain, ids_of, run, true_row
from hypothesis import given, settings
from hypothesis import strategies as st
from models.runner import float64_of, relative_error, tokens, views_of
from reference.ref_model import forward

from rllama.config import EngineConfig
from rllama.cpu import CpuBackend
from rllama.engine.engine import Engine
from rllama.engine.request import Request
from rllama.kv_groups import pages_over
from rllama.models import find

WINDOWS = [(6,), (0, 6), (9, 1, 0)]


def requests_of(seed: int = 7) -> list[Request]:
    rng = np.random.default_rng(seed)
    requests = []
    for i in range(8):
        prompt = rng.integers(0, 61, rng.integers(1, 40)).tolist()
        if i % 3 == 0:
            prompt = list(range(16)) + prompt  # a beginning that several have
        requests.append(ask(prompt, max_new_tokens=8))
    return requests


REQUESTS = requests_of()


def continuation(request: Request, windows: Sequence[int]) -> list[int]:
    tokens = list(request.prompt_ids)
    for _ in range(request.sampling.max_new_tokens or 0):
        tokens.append(int(np.argmax(true_row(tokens, windows=windows))))
    return tokens[len(request.prompt_ids) :]


EXPECTED = {w: [continuation(request, w) for request in REQUESTS] for w in WINDOWS}


def model_of(windows: tuple[int, ...]) -> HashModel:
    return HashModel(n_layers=len(windows), windows=windows)


def all_free(engine: Engine) -> bool:
    return all(pool.n_available == pool.n_pages for pool in engine.kv.pools)


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_windows_together_in_chunks(
    make_engine: MakeEngine, windows: tuple[int, ...], chunk: int
) -> None:
    engine = make_engine(model_of(windows), max_batch_tokens=chunk)
    assert run(engine, REQUESTS) == EXPECTED[windows]
    assert all_free(engine)


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_windows_from_the_prefix_cache(make_engine: MakeEngine, windows: tuple[int, ...]) -> None:
    engine = make_engine(model_of(windows))
    assert run(engine, REQUESTS) == EXPECTED[windows]
    seqs = [engine.submit(request) for request in REQUESTS]
    outputs = drain(engine)
    assert [ids_of(outputs[seq.id]) for seq in seqs] == EXPECTED[windows]
    assert sum(seq.n_cached for seq in seqs) > 20


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_windows_under_preemption(make_engine: MakeEngine, windows: tuple[int, ...]) -> None:
    """The groups with a window are as small as they may be, and every third step takes one back."""
    engine = make_engine(model_of(windows), n_pages=24, max_seqs=8)
    seqs, got = [engine.submit(request) for request in REQUESTS], dict[int, list[int]]()
    for i in range(1000):
        for output in engine.step():
            got.setdefault(output.seq_id, []).extend(output.token_ids)
        if i % 3 == 0:
            engine.scheduler.preempt_youngest()
        if not engine.has_work:
            break
    assert [got[seq.id] for seq in seqs] == EXPECTED[windows]
    assert engine.scheduler.n_preempted > 5
    assert all_free(engine)


@settings(max_examples=25, deadline=None)
@given(
    windows=st.sampled_from(WINDOWS),
    order=st.permutations(range(8)),
    chunk=st.integers(1, 40),
    n_pages=st.integers(24, 60),
    max_seqs=st.integers(1, 8),
    page_len=st.sampled_from([1, 3, 4, 16]),
    share_prefixes=st.booleans(),
)
def test_windows_any_order_and_size(
    windows: tuple[int, ...], order: list[int], n_pages: int, page_len: int, chunk: int,
    max_seqs: int, share_prefixes: bool,
) -> None:  # fmt: skip
    config = replace(
        BASE, max_batch_tokens=chunk, n_pages=n_pages * 4 // page_len + 1, max_seqs=max_seqs,
        page_len=page_len, share_prefixes=share_prefixes,
    )  # fmt: skip
    engine = Engine(model_of(windows), None, config, HashBackend())  # type: ignore[arg-type]
    assert run(engine, [REQUESTS[i] for i in order]) == [EXPECTED[windows][i] for i in order]
    assert all_free(engine)


def test_windows_logits_of_every_token(make_engine: MakeEngine) -> None:
    engine = make_engine(model_of((0, 6)), max_batch_tokens=7, n_pages=24)
    ids = np.random.default_rng(3).integers(0, 61, 60).tolist()
    rows = engine.logits(ids)
    for i in range(60):
        assert np.array_equal(rows[i], true_row(ids[: i + 1], windows=(0, 6)))
    assert all_free(engine)


def test_windows_pages_stay_bounded_over_two_thousand_tokens() -> None:
    model = HashModel(n_layers=1, windows=(30,), max_seq_len=2100)
    config = EngineConfig(max_batch_tokens=16, page_len=4, max_seqs=1, max_seq_len=2100)
    engine = Engine(model, None, config, HashBackend())  # type: ignore[arg-type]
    most = pages_over(30 + 16 - 1, 4)
    assert engine.kv.pools[0].n_pages <= pages_over(30, 4) + 4
    seq = engine.submit(ask([5] * 100, max_new_tokens=2000))
    held = []
    while engine.has_work:
        engine.step()
        held.append(engine.kv.n_pages_held(seq)[0])
    assert len(seq.token_ids) == 2100
    assert max(held) <= most
    assert all_free(engine)


# ---- the same with real kernels: pages of 64, windows over a page and within ----

PROMPT_LENGTHS = (300, 65, 128, 190, 20, 64)


@pytest.fixture(scope="module", params=[(70, 0), (40, 40), (0, 64)], ids=str)
def model(request: pytest.FixtureRequest) -> object:
    cfg = tiny_config(max_seq_len=512, windows=request.param, attn_softcap=20.0)
    views = views_of(random_model(cfg, seed=9), "F32")
    backend = CpuBackend(n_threads=2)
    return find(cfg.arch)(cfg, views, backend, max_batch_tokens=512)


def tokens_of(model: object, *, times: int = 1, **config: object) -> list[list[int]]:
    """Greedy tokens of prompts submitted together, the last of several times."""
    engine_config = EngineConfig(**{"kv_dtype": "f32", **config})  # type: ignore[arg-type]
    engine = Engine(model, None, engine_config, model.backend)  # type: ignore[arg-type,attr-defined]
    rng = np.random.default_rng(11)
    beginning = rng.integers(3, 288, 128).tolist()
    prompts = [(beginning + rng.integers(3, 288, n).tolist())[-n:] for n in PROMPT_LENGTHS]
    prompts.append(prompts[0])
    asked = [ask(p, max_new_tokens=30, ignore_eos=True) for p in prompts]
    try:
        return [run(engine, asked) for _ in range(times)][-1]
    finally:
        engine.close()


def test_windows_of_real_kernels_give_the_same_tokens_however_they_run(model: object) -> None:
    alone = tokens_of(model, max_seqs=1, share_prefixes=False)
    assert tokens_of(model, max_batch_tokens=37) == alone
    assert tokens_of(model, max_batch_tokens=512) == alone
    assert tokens_of(model, times=2) == alone
    assert tokens_of(model, n_pages=8, max_batch_tokens=100) == alone


def test_windows_of_real_kernels_give_the_logits_of_the_reference() -> None:
    cfg = tiny_config(max_seq_len=512, n_layers=3, windows=(70, 0, 9), attn_scale=0.5)
    views = views_of(random_model(cfg, seed=10), "F32")
    model = find(cfg.arch)(cfg, views, CpuBackend(n_threads=2), max_batch_tokens=50)
    config = EngineConfig(kv_dtype="f32", max_batch_tokens=50)
    engine = Engine(model, None, config, model.backend)
    ids = tokens(cfg, 300)
    assert relative_error(engine.logits(ids), forward(cfg, float64_of(views), ids)) < 5e-6
    engine.close()
