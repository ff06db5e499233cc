"""Token ids depend on the request alone: not on company, chunking, preemption or shared pages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import MakeEngine
from hash_model import BASE, HashBackend, HashModel, ask, drain, ids_of, run, true_row
from hypothesis import given, settings
from hypothesis import strategies as st

from rllama.engine.engine import Engine
from rllama.engine.request import Request
from rllama.engine.sampling import choose, uniform


def continuation(request: Request) -> list[int]:
    """What must come out, by the numpy chain over the true logits."""
    sampling, tokens = request.sampling, list(request.prompt_ids)
    for _ in range(sampling.max_new_tokens or 0):
        u = uniform(sampling.seed or 0, request.choice_index, len(tokens))
        tokens.append(choose(true_row(tokens), sampling, n_vocab=61, seen=tokens, u=u))
    return tokens[len(request.prompt_ids) :]


def mixed_requests() -> list[Request]:
    rng = np.random.default_rng(7)
    requests = []
    for i in range(10):
        prompt = rng.integers(0, 61, rng.integers(1, 40)).tolist()
        if i % 3 == 0:
            prompt = list(range(16)) + prompt  # a beginning that several have
        params = {} if i % 2 else {"temperature": 1.0, "seed": i, "repetition_penalty": 1.3}
        requests.append(ask(prompt, choice_index=i % 4, **params))
    return requests


REQUESTS = mixed_requests()
EXPECTED = [continuation(request) for request in REQUESTS]


@pytest.mark.parametrize("chunk", [1, 7, 16, 64])
def test_invariance_together_in_chunks(make_engine: MakeEngine, chunk: int) -> None:
    assert run(make_engine(max_batch_tokens=chunk), REQUESTS) == EXPECTED


def test_invariance_alone(make_engine: MakeEngine) -> None:
    engine = make_engine(share_prefixes=False)
    assert [run(engine, [request])[0] for request in REQUESTS] == EXPECTED


def test_invariance_from_the_prefix_cache(make_engine: MakeEngine) -> None:
    model = HashModel()
    engine = make_engine(model)
    assert run(engine, REQUESTS) == EXPECTED
    n_tokens = sum(model.batch_tokens)
    seqs = [engine.submit(request) for request in REQUESTS]
    outputs = drain(engine)
    assert [ids_of(outputs[seq.id]) for seq in seqs] == EXPECTED
    assert sum(seq.n_cached for seq in seqs) > 100
    assert sum(model.batch_tokens) - n_tokens < n_tokens / 2


@pytest.mark.parametrize("n_pages", [24, 26, 30])
def test_invariance_under_preemption(make_engine: MakeEngine, n_pages: int) -> None:
    engine = make_engine(n_pages=n_pages, max_seqs=10)
    assert run(engine, REQUESTS) == EXPECTED
    assert engine.scheduler.n_preempted > 0
    assert engine.kv.pools[0].n_available == n_pages


def test_invariance_arriving_one_by_one_with_aborts(make_engine: MakeEngine) -> None:
    engine = make_engine(n_pages=30, max_batch_tokens=5)
    got: dict[int, list[int]] = {}
    seqs = []
    for request in REQUESTS:
        seqs.append(engine.submit(request))
        victim = engine.submit(ask([3] * 20, temperature=1.0, seed=1))
        for _ in range(3):
            for output in engine.step():
                got.setdefault(output.seq_id, []).extend(output.token_ids)
        engine.abort(victim.id)
    for seq_id, outputs in drain(engine).items():
        got.setdefault(seq_id, []).extend(ids_of(outputs))
    assert [got[seq.id] for seq in seqs] == EXPECTED
    assert engine.kv.pools[0].n_available == 30


@settings(max_examples=40, deadline=None)
@given(
    order=st.permutations(range(10)),
    chunk=st.integers(1, 40),
    n_pages=st.integers(24, 60),
    max_seqs=st.integers(1, 10),
    page_len=st.sampled_from([1, 3, 4, 16]),
)
def test_invariance_any_order_and_size(
    order: list[int], chunk: int, n_pages: int, max_seqs: int, page_len: int
) -> None:
    config = replace(
        BASE, max_batch_tokens=chunk, n_pages=n_pages * 4 // page_len + 1, max_seqs=max_seqs,
        page_len=page_len,
    )  # fmt: skip
    engine = Engine(HashModel(), None, config, HashBackend())  # type: ignore[arg-type]
    got = run(engine, [REQUESTS[i] for i in order])
    assert got == [EXPECTED[i] for i in order]
    assert engine.kv.pools[0].n_available == config.n_pages
