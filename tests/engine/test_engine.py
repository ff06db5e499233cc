"""Engine: ends, refusals, progress, failures; the model is the hash of everything in the cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import MakeEngine
from hash_model import (
    CONTEXT,
    VOCAB,
    HashBackend,
    HashModel,
    LetterTokenizer,
    ask,
    drain,
    ids_of,
    run,
    true_row,
)

from rllama.config import EngineConfig
from rllama.engine.engine import Engine
from rllama.errors import (
    BackendError,
    ConfigError,
    ContextFullError,
    EngineClosedError,
    OverloadedError,
)


def greedy(prompt: list[int], n: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(int(np.argmax(true_row(tokens))))
    return tokens[len(prompt) :]


def test_engine_ends_after_max_new_tokens(make_engine: MakeEngine) -> None:
    engine = make_engine()
    seq = engine.submit(ask([1, 2, 3], max_new_tokens=5))
    outputs = drain(engine)[seq.id]
    assert ids_of(outputs) == greedy([1, 2, 3], 5)
    assert [o.finish_reason for o in outputs] == [None, None, None, None, "length"]
    assert seq.finish_reason == "length"
    assert engine.kv.pools[0].n_available == 200


def test_engine_ends_at_the_end_of_the_context(make_engine: MakeEngine) -> None:
    engine = make_engine()
    seq = engine.submit(ask(list(range(50)), max_new_tokens=None))
    outputs = drain(engine)[seq.id]
    assert len(ids_of(outputs)) == CONTEXT - 50
    assert outputs[-1].finish_reason == "length"


def test_engine_smaller_context_is_kept(make_engine: MakeEngine) -> None:
    engine = make_engine(max_seq_len=10)
    assert len(run(engine, [ask([1] * 4, max_new_tokens=None)])[0]) == 6
    with pytest.raises(ContextFullError, match="has 13 tokens, 3 more than the context of 10"):
        engine.submit(ask([1] * 13))


def test_engine_few_pages_make_the_context_small(make_engine: MakeEngine) -> None:
    assert make_engine(n_pages=3).max_seq_len == 12


@pytest.mark.parametrize("params", [{"max_new_tokens": 0}, {"max_new_tokens": 3}])
def test_engine_no_room_for_a_token_ends_at_once(
    make_engine: MakeEngine, params: dict[str, int]
) -> None:
    model = HashModel()
    engine = make_engine(model)
    n_prompt = 5 if params["max_new_tokens"] == 0 else CONTEXT
    seq = engine.submit(ask([1] * n_prompt, **params))
    assert engine.has_work
    (output,) = drain(engine)[seq.id]
    assert (output.token_ids, output.finish_reason) == ((), "length")
    assert model.batch_tokens == []


def test_engine_stop_id_ends_and_is_not_part_of_the_output(make_engine: MakeEngine) -> None:
    expected = greedy([1, 2, 3], 6)
    stop_id = expected[3]
    engine = make_engine()
    seq = engine.submit(ask([1, 2, 3], stop_token_ids=[stop_id]))
    outputs = drain(engine)[seq.id]
    assert ids_of(outputs) == expected[:3]
    assert outputs[-1].finish_reason == "stop"


def test_engine_eos_ends_unless_ignored(make_engine: MakeEngine) -> None:
    expected = greedy([1, 2, 3], 12)
    model = HashModel(eos_token_ids=(expected[2],))
    assert run(make_engine(model), [ask([1, 2, 3])]) == [expected[:2]]
    assert run(make_engine(model), [ask([1, 2, 3], ignore_eos=True)]) == [expected]


def test_engine_eos_of_the_tokenizer_counts(make_engine: MakeEngine) -> None:
    expected = greedy([1, 2, 3], 12)
    tokenizer = LetterTokenizer()
    tokenizer.eos_token_id = expected[4]  # type: ignore[assignment]
    assert run(make_engine(tokenizer=tokenizer), [ask([1, 2, 3])]) == [expected[:4]]


def test_engine_stop_text_is_cut(make_engine: MakeEngine) -> None:
    tokenizer = LetterTokenizer()
    expected = greedy([1, 2, 3], 12)
    text = tokenizer.decode(expected)
    engine = make_engine(tokenizer=tokenizer)
    seq = engine.submit(ask([1, 2, 3], stop=[text[4:7]]))
    outputs = drain(engine)[seq.id]
    assert "".join(o.text for o in outputs) == text[:4]
    assert ids_of(outputs) == expected[:7]
    assert outputs[-1].finish_reason == "stop"


def test_engine_held_text_comes_with_the_end(make_engine: MakeEngine) -> None:
    tokenizer = LetterTokenizer()
    text = tokenizer.decode(greedy([1, 2, 3], 12))
    engine = make_engine(tokenizer=tokenizer)
    seq = engine.submit(ask([1, 2, 3], stop=[text[10:] + "never"]))
    outputs = drain(engine)[seq.id]
    assert "".join(o.text for o in outputs) == text
    assert outputs[-1].finish_reason == "length"


def test_engine_stop_text_without_tokenizer_is_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(ConfigError, match="need a tokenizer"):
        make_engine().submit(ask([1], stop=["x"]))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "no tokens"),
        ([1, VOCAB], "token id 61 is outside the vocabulary of 61"),
        ([-1, 2], "token id -1 is outside"),
    ],
)
def test_engine_bad_prompts_are_refused(
    make_engine: MakeEngine, prompt: list[int], message: str
) -> None:
    engine = make_engine()
    with pytest.raises(ConfigError, match=message):
        engine.submit(ask(prompt))
    with pytest.raises(ConfigError, match=message):
        engine.logits(prompt)
    assert not engine.has_work


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_seq_len": CONTEXT + 1}, "max_seq_len 97 is beyond the model's 96"),
        ({"max_seq_len": 50, "n_pages": 3}, "3 pages of 4 positions are too few"),
        ({"max_batch_tokens": 0}, "max_batch_tokens must be at least 1"),
        ({"n_pages": -1}, "n_pages must not be negative"),
    ],
)
def test_engine_bad_config_is_refused(
    make_engine: MakeEngine, changes: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_engine(**changes)


def test_engine_padded_vocabulary_is_legal_in_a_prompt_only(make_engine: MakeEngine) -> None:
    tokenizer = LetterTokenizer()
    tokenizer.n_pieces = 40
    engine = make_engine(tokenizer=tokenizer)
    requests = [ask([50, i], temperature=1.0, top_k=0, seed=i) for i in range(8)]
    ids = run(engine, requests)
    assert all(token_id < 40 for row in ids for token_id in row)


def test_engine_reports_prefill_progress(make_engine: MakeEngine) -> None:
    engine = make_engine()
    seq = engine.submit(ask(list(range(40)), max_new_tokens=2))
    outputs = drain(engine)[seq.id]
    assert [o.n_prompt_done for o in outputs] == [16, 32, 40, 40]
    assert [len(o.token_ids) for o in outputs] == [0, 0, 1, 1]


def test_engine_shares_a_prefix_and_counts_it(make_engine: MakeEngine) -> None:
    model = HashModel()
    engine = make_engine(model)
    run(engine, [ask(list(range(20)))])
    seq = engine.submit(ask([*range(16), 3]))
    drain(engine)
    assert seq.n_cached == 16
    whole = engine.submit(ask(list(range(20))))
    drain(engine)
    assert whole.n_cached == 16  # the last token is always computed


def test_engine_logprobs_and_probability(make_engine: MakeEngine) -> None:
    engine = make_engine()
    seq = engine.submit(ask([1, 2], logprobs=3, max_new_tokens=1, repetition_penalty=3.0))
    (output,) = drain(engine)[seq.id]
    x = true_row([1, 2]).astype(np.float64)
    logs = x - x.max() - np.log(np.exp(x - x.max()).sum())
    (entry,) = output.logprobs
    assert entry.token_id == output.token_ids[0]
    assert entry.logprob == pytest.approx(logs[entry.token_id], abs=1e-6)
    assert [i for i, _ in entry.top] == np.argsort(-x, kind="stable")[:3].tolist()
    assert output.probability == pytest.approx(np.exp(entry.logprob))


def test_engine_probability_only_when_wanted(make_engine: MakeEngine) -> None:
    engine = make_engine()
    request = ask([1, 2], max_new_tokens=1)
    plain, wanted = engine.submit(request), engine.submit(replace(request, want_probability=True))
    outputs = drain(engine)
    assert outputs[plain.id][0].probability is None
    assert 0 < (outputs[wanted.id][0].probability or 0) < 1
    assert outputs[wanted.id][0].logprobs == ()


def test_engine_fresh_seeds_differ(make_engine: MakeEngine) -> None:
    engine = make_engine()
    request = ask([1], temperature=5.0, top_k=0, seed=None)
    assert len({tuple(ids) for ids in run(engine, [request] * 4)}) == 4


def test_engine_choices_of_a_seed_differ(make_engine: MakeEngine) -> None:
    engine = make_engine()
    requests = [ask([1], temperature=5.0, top_k=0, seed=7, choice_index=i) for i in range(4)]
    assert len({tuple(ids) for ids in run(engine, requests)}) == 4


def test_engine_failed_forward_ends_its_batch_only(make_engine: MakeEngine) -> None:
    model = HashModel()
    engine = make_engine(model, max_seqs=1)
    hit, spared = engine.submit(ask([1, 2])), engine.submit(ask([3, 4]))
    model.error = RuntimeError("the device is gone")
    outputs = drain(engine)
    assert outputs[hit.id][-1].error is not None
    assert outputs[hit.id][-1].finish_reason == "abort"
    assert ids_of(outputs[spared.id]) == greedy([3, 4], 12)
    assert engine.kv.pools[0].n_available == 200
    assert run(engine, [ask([1, 2])]) == [greedy([1, 2], 12)]


def test_engine_bad_logits_end_their_sequence_only(make_engine: MakeEngine) -> None:
    class Broken(HashModel):
        def forward(self, batch, kv):  # type: ignore[no-untyped-def]
            rows = super().forward(batch, kv)
            rows[batch.token_ids[batch.logit_rows] == 9] = np.nan
            return rows

    engine = make_engine(Broken())
    bad, good = engine.submit(ask([8, 9])), engine.submit(ask([3, 4], max_new_tokens=2))
    outputs = drain(engine)
    (output,) = outputs[bad.id]
    assert isinstance(output.error, BackendError)
    assert "logits are not finite at position 1" in str(output.error)
    assert ids_of(outputs[good.id]) == greedy([3, 4], 2)


def test_engine_abort_frees_and_tells(make_engine: MakeEngine) -> None:
    engine = make_engine(max_seqs=1)
    running, waiting = engine.submit(ask([1] * 10)), engine.submit(ask([2] * 10))
    engine.step()
    engine.abort(running.id)
    engine.abort(waiting.id)
    engine.abort(waiting.id)
    engine.abort(12345678)
    outputs = drain(engine)
    assert [o.finish_reason for o in outputs[running.id]] == ["abort"]
    assert [o.finish_reason for o in outputs[waiting.id]] == ["abort"]
    assert engine.kv.pools[0].n_available == 200
    assert not engine.has_work


def test_engine_full_queue_is_overloaded(make_engine: MakeEngine) -> None:
    engine = make_engine(max_waiting=2)
    engine.submit(ask([1]))
    engine.submit(ask([1]))
    with pytest.raises(OverloadedError, match="2 requests are waiting"):
        engine.submit(ask([1]))


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_engine_logits_of_every_token(make_engine: MakeEngine, chunk: int) -> None:
    engine = make_engine(max_batch_tokens=chunk)
    ids = np.random.default_rng(3).integers(0, VOCAB, 30).tolist()
    rows = engine.logits(ids)
    assert rows.shape == (30, VOCAB)
    assert rows.dtype == np.float32
    for i in range(30):
        assert np.array_equal(rows[i], true_row(ids[: i + 1]))
    assert engine.kv.pools[0].n_available == 200


def test_engine_logits_beside_running_sequences(make_engine: MakeEngine) -> None:
    engine = make_engine(n_pages=24)
    seqs = [engine.submit(ask([i] * 20, max_new_tokens=20)) for i in range(2)]
    for _ in range(6):
        engine.step()
    ids = [5] * 60
    assert np.array_equal(engine.logits(ids)[-1], true_row(ids))
    assert engine.scheduler.n_preempted > 0
    drain(engine)
    assert [s.token_ids[20:] for s in seqs] == [greedy([i] * 20, 20) for i in range(2)]


def test_engine_closed_refuses_everything(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.submit(ask([1]))
    engine.close()
    engine.close()
    for call in (engine.step, lambda: engine.submit(ask([1])), lambda: engine.logits([1])):
        with pytest.raises(EngineClosedError):
            call()
    assert not engine.has_work


def test_engine_default_cache_holds_a_context(make_engine: MakeEngine) -> None:
    backend = HashBackend()
    Engine(HashModel(), None, EngineConfig(), backend).close()  # type: ignore[arg-type]
    (store,) = backend.stores
    assert store.groups[0].n_pages * store.page_len >= CONTEXT
    assert store.is_closed
