"""The library's face: one LLM, many prompts, threads and tasks."""

from __future__ import annotations

import asyncio
import gc
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from formats.writers import random_model, raw_gguf, small_vocab, tiny_config, write_gguf
from models.runner import float64_of, relative_error, views_of
from reference.ref_model import forward as ref_forward

from rllama import LLM, Completion, Piece, SamplingParams, memory
from rllama.errors import (
    ConfigError,
    ContextFullError,
    EngineClosedError,
    FormatError,
    MemoryPlanError,
    RllamaError,
)

GREEDY = SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True)
SEEDED = SamplingParams(temperature=1.0, seed=7, max_new_tokens=12, ignore_eos=True)
PROMPTS = ["a", "the sea", "on and on and on", "", "tin hats", "ate"]


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> Iterator[LLM]:
    with LLM(tiny_model) as model:
        yield model


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """A model without a tokenizer."""
    cfg = tiny_config()
    path = tmp_path_factory.mktemp("bare") / "bare.gguf"
    with LLM(write_gguf(path, cfg, random_model(cfg, seed=1))) as model:
        yield model


# ---- generate ----


def test_generate_one_prompt_gives_one_completion(llm: LLM) -> None:
    done = llm.generate("the sea", GREEDY)
    assert isinstance(done, Completion)
    assert len(done.token_ids) == 12
    assert done.finish_reason == "length"
    assert done.logprobs is None
    assert llm.detokenize(llm.tokenize("the sea") + list(done.token_ids)) == "the sea" + done.text


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_generate_list_equals_one_by_one(llm: LLM, params: SamplingParams) -> None:
    alone = [llm.generate(prompt, params) for prompt in PROMPTS]
    together = llm.generate(PROMPTS, params)
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert [c.text for c in together] == [c.text for c in alone]


def test_generate_text_equals_its_token_ids(llm: LLM) -> None:
    ids = llm.tokenize("the sea")
    want = llm.generate("the sea", GREEDY)
    assert llm.generate(ids, GREEDY).text == want.text
    assert llm.generate(np.array(ids), GREEDY).text == want.text
    assert [c.text for c in llm.generate([ids, ids], GREEDY)] == [want.text] * 2


def test_generate_no_prompts_gives_no_completions(llm: LLM) -> None:
    assert llm.generate([]) == []


def test_generate_seed_decides(llm: LLM) -> None:
    texts = {llm.generate("a", SEEDED.with_(seed=seed)).text for seed in (1, 1, 2, 3)}
    assert len(texts) == 3


def test_generate_logprobs_are_of_the_unmodified_distribution(llm: LLM) -> None:
    done = llm.generate("the sea", SEEDED.with_(logprobs=2, repetition_penalty=1.5))
    ids = llm.tokenize("the sea") + list(done.token_ids)
    rows = llm.logits(ids[:-1])[-12:].astype(np.float64)
    want = rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))
    assert done.logprobs is not None
    assert [entry.token_id for entry in done.logprobs] == list(done.token_ids)
    for entry, row in zip(done.logprobs, want, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token_id], abs=1e-5)
        assert [token_id for token_id, _ in entry.top] == list(np.argsort(-row)[:2])


def test_generate_stop_text_ends_and_is_cut(llm: LLM) -> None:
    whole = llm.generate("the sea", GREEDY).text
    stop = whole[4:7]
    done = llm.generate("the sea", GREEDY.with_(stop=stop))
    assert done.finish_reason == "stop"
    assert done.text == whole[: whole.index(stop)]


def test_generate_stop_id_ends_and_is_left_out(llm: LLM) -> None:
    whole = llm.generate("the sea", GREEDY)
    last = whole.token_ids[5]
    done = llm.generate("the sea", GREEDY.with_(stop_token_ids=(last,)))
    assert done.finish_reason == "stop"
    assert done.token_ids == whole.token_ids[: whole.token_ids.index(last)]


def test_generate_to_the_end_of_the_context(bare: LLM) -> None:
    done = bare.generate([1, 5, 9], SamplingParams(temperature=0, ignore_eos=True))
    assert done.finish_reason == "length"
    assert len(done.token_ids) == bare.max_seq_len - 3 == 61


def test_generate_nothing_is_a_completion_too(llm: LLM) -> None:
    done = llm.generate("a", SamplingParams(max_new_tokens=0))
    assert (done.text, done.token_ids, done.finish_reason) == ("", (), "length")
    assert done.stats.decode_tokens_per_s == 0.0


def test_generate_stats_count_what_was_done(tiny_model: Path) -> None:
    with LLM(tiny_model) as llm:
        ids = [5 + i % 250 for i in range(130)]
        first = llm.generate(ids, GREEDY).stats
        again = llm.generate(ids, GREEDY).stats
    assert (first.n_prompt_tokens, first.n_new_tokens, first.n_cached_tokens) == (130, 12, 0)
    assert first.n_decode_steps == 11
    assert again.n_cached_tokens == 128
    assert 0 < first.prefill_s <= first.first_token_s
    assert first.prompt_tokens_per_s == pytest.approx(130 / first.prefill_s)
    assert first.decode_tokens_per_s == pytest.approx(11 / first.decode_s)


def test_generate_prefix_cache_off_caches_nothing(tiny_model: Path) -> None:
    with LLM(tiny_model, share_prefixes=False) as llm:
        ids = [5 + i % 250 for i in range(130)]
        texts = [llm.generate(ids, SEEDED) for _ in range(2)]
    assert [c.stats.n_cached_tokens for c in texts] == [0, 0]
    assert texts[0].token_ids == texts[1].token_ids


# ---- what is wrong is said before anything runs ----


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([1, 10**6], "token id 1000000 is outside the vocabulary of 288"),
        ([1, -1], "token id -1"),
        ([1, True], "whole number, not True"),
        ([1, "a"], "whole number, not 'a'"),
        (3.5, "not a float"),
        (None, "not a NoneType"),
        ([[]], "prompt 0: the prompt has no tokens"),
        (["a", [1, 10**6]], "prompt 1: token id 1000000"),
        (["a", 5], "prompt 1: a prompt must be a text or a list of token ids, not a int"),
    ],
)
def test_generate_bad_prompt_is_said(llm: LLM, prompt: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        llm.generate(prompt, GREEDY)  # type: ignore[call-overload]


def test_generate_one_bad_prompt_runs_none(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a prompt was run")

    monkeypatch.setattr(llm._worker, "submit", never)
    with pytest.raises(ConfigError, match="prompt 2"):
        llm.generate(["a", "b", [10**6]], GREEDY)


def test_generate_prompt_beyond_the_context_says_by_how_much(bare: LLM) -> None:
    with pytest.raises(ContextFullError, match="70 tokens, 6 more than the context of 64"):
        bare.generate([5] * 70)


def test_generate_params_of_another_kind_are_refused(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="params must be SamplingParams, not dict"):
        llm.generate("a", {"temperature": 0})  # type: ignore[call-overload]


# ---- streams ----


def test_stream_pieces_add_up_to_the_completion(llm: LLM) -> None:
    want = llm.generate("the sea", SEEDED)
    pieces = list(llm.stream("the sea", SEEDED, with_probability=True))
    assert "".join(pieces) == want.text
    assert tuple(i for piece in pieces for i in piece.token_ids) == want.token_ids
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == "length"
    logprobs = llm.generate("the sea", SEEDED.with_(logprobs=0)).logprobs
    assert logprobs is not None
    want_each = [np.exp(entry.logprob) for entry in logprobs]
    assert [piece.probability for piece in pieces] == pytest.approx(want_each)
    assert {piece.probability for piece in llm.stream("the sea", SEEDED)} == {None}


def test_stream_reports_prefill_and_stats(tiny_model: Path) -> None:
    seen: list[tuple[int, int]] = []
    ids = [5 + i % 250 for i in range(100)]
    with LLM(tiny_model, max_batch_tokens=32) as llm:
        stream = llm.stream(ids, GREEDY, on_prefill=lambda done, total: seen.append((done, total)))
        assert len(list(stream)) == 12
    assert seen == [(32, 100), (64, 100), (96, 100), (100, 100)]
    assert stream.stats.n_new_tokens == 12


def test_stream_says_at_once_what_is_wrong(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="outside the vocabulary"):
        llm.stream([10**6])


def assert_idle(llm: LLM) -> None:
    """Nothing runs, nothing waits: an abort has gone through by the time this is answered."""
    queues = llm._worker.call(lambda e: (len(e.scheduler.running), len(e.scheduler.waiting)))
    assert queues.result(timeout=10) == (0, 0)


@pytest.mark.parametrize("how", ["close", "drop", "with"])
def test_stream_given_up_is_aborted(llm: LLM, how: str) -> None:
    stream = llm.stream("the sea", GREEDY.with_(max_new_tokens=4000))
    next(stream)
    if how == "close":
        stream.close()
    elif how == "with":
        with stream:
            next(stream)
    else:
        del stream
        gc.collect()
    assert_idle(llm)


def test_piece_is_a_str_that_survives_pickling() -> None:
    piece = Piece("ab", token_ids=(1, 2), probability=0.5, finish_reason="stop")
    assert piece == "ab"
    again = pickle.loads(pickle.dumps(piece))
    assert (again, again.token_ids, again.finish_reason) == ("ab", (1, 2), "stop")


# ---- many at once ----


def test_threads_get_what_they_would_get_alone(llm: LLM) -> None:
    prompts = [*PROMPTS, *PROMPTS]
    want = [llm.generate(prompt, SEEDED).text for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        got = list(pool.map(lambda prompt: llm.generate(prompt, SEEDED).text, prompts))
    assert got == want


def test_tasks_get_what_they_would_get_alone(llm: LLM) -> None:
    want = [llm.generate(prompt, SEEDED).text for prompt in PROMPTS]

    async def one(prompt: str) -> str:
        return "".join([piece async for piece in llm.astream(prompt, SEEDED)])

    async def everything() -> tuple[list[str], list[str], list[str]]:
        single = await asyncio.gather(*(llm.agenerate(prompt, SEEDED) for prompt in PROMPTS))
        listed = await llm.agenerate(PROMPTS, SEEDED)
        streamed = await asyncio.gather(*(one(prompt) for prompt in PROMPTS))
        return [c.text for c in single], [c.text for c in listed], list(streamed)

    assert asyncio.run(everything()) == (want, want, want)


def test_task_cancelled_aborts_its_request(llm: LLM) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(llm.agenerate("a", GREEDY.with_(max_new_tokens=4000)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert_idle(llm)


# ---- logits, tokens ----


def test_logits_match_the_reference(bare: LLM) -> None:
    cfg = tiny_config()
    ids = list(range(3, 50))
    want = ref_forward(cfg, float64_of(views_of(random_model(cfg, seed=1), "F32")), ids)
    got = bare.logits(ids)
    assert got.dtype == np.float32
    assert got.shape == (47, cfg.vocab_size)
    assert relative_error(got, want) < 3e-6


def test_tokenize_bos_as_asked(llm: LLM) -> None:
    plain = llm.tokenize("the sea", add_bos=False)
    assert llm.tokenize("the sea") == [1, *plain]
    assert llm.tokenize("the sea", add_bos=None) == [1, *plain]
    assert llm.detokenize(plain) == "the sea"
    with pytest.raises(ConfigError, match="a text must be a str, not a int"):
        llm.tokenize(5)  # type: ignore[arg-type]


def test_no_tokenizer_serves_ids_and_names_what_is_missing(bare: LLM) -> None:
    assert bare.tokenizer is None
    assert len(bare.generate([1, 2], GREEDY).token_ids) == 12
    calls = (
        lambda: bare.generate("a"), lambda: bare.stream("a"), lambda: bare.tokenize("a"),
        lambda: bare.detokenize([1]),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(ConfigError, match=r"no tokenizer.*tokenizer_path"):
            call()


def test_padded_vocabulary_rows_are_never_chosen(tmp_path: Path) -> None:
    cfg = tiny_config(vocab_size=512)
    tensors = random_model(cfg, seed=2)
    tensors["lm_head"][288:] = tensors["lm_head"][:224] * 3
    path = write_gguf(tmp_path / "padded.gguf", cfg, tensors, vocab=small_vocab(288))
    with LLM(path) as llm:
        done = llm.generate(PROMPTS, SamplingParams(top_k=0, seed=3, max_new_tokens=40))
    assert max(i for c in done for i in c.token_ids) < 288


def test_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    cfg = tiny_config(vocab_size=260)
    path = write_gguf(tmp_path / "small.gguf", cfg, random_model(cfg, seed=2))
    other = write_gguf(
        tmp_path / "large.gguf",
        tiny_config(),
        random_model(tiny_config(), 1),
        vocab=small_vocab(288),
    )
    with pytest.raises((FormatError, ConfigError), match=r"288.*260"):
        LLM(path, tokenizer_path=other)


# ---- options, life and death ----


def test_options_are_checked(tiny_model: Path) -> None:
    wrong: list[dict[str, object]] = [
        {"max_seq_len": 0}, {"max_seq_len": 2**31}, {"max_seq_len": 5000}, {"max_seq_len": 1.5},
        {"n_threads": 0}, {"n_threads": 10**9}, {"n_threads": True}, {"isa": "mmx"},
        {"kv_dtype": "q2"}, {"max_batch_tokens": 0}, {"max_seqs": -1}, {"n_pages": 0},
    ]  # fmt: skip
    for options in wrong:
        with pytest.raises(ConfigError) as caught:
            LLM(tiny_model, **options)  # type: ignore[arg-type]
        assert caught.value.exit_code == 2, options


def test_memory_plan_is_made_before_anything_is_taken(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    little = memory.Available(1 << 20, "a test")
    monkeypatch.setattr("rllama.loader.available_memory", lambda: little)
    with pytest.raises(MemoryPlanError, match=r"needed.*1\.0 MB there \(a test\)"):
        LLM(tiny_model, max_seq_len=4096)


def test_f16_halves_weights_and_cache(tiny_model: Path) -> None:
    with LLM(tiny_model, f16=True) as halved, LLM(tiny_model) as whole:
        assert halved.loaded.engine.kv_dtype == "f16"
        assert whole.loaded.engine.kv_dtype == "f32"
        ratio = whole.loaded.plan.weights_bytes / halved.loaded.plan.weights_bytes
        assert 1.9 < ratio <= 2.0
        assert halved.loaded.step_bytes(100) < whole.loaded.step_bytes(100)


def test_closed_llm_refuses_and_closes_again(tiny_model: Path) -> None:
    llm = LLM(tiny_model)
    stream = llm.stream("a", GREEDY.with_(max_new_tokens=4000))
    next(stream)
    llm.close()
    llm.close()
    with pytest.raises(EngineClosedError):
        list(stream)
    for call in (lambda: llm.generate("a"), lambda: llm.stream("a"), lambda: llm.logits([1])):
        with pytest.raises(EngineClosedError):
            call()


def test_close_from_another_thread_ends_a_waiting_call(tiny_model: Path) -> None:
    llm = LLM(tiny_model)
    errors: list[RllamaError] = []

    def work() -> None:
        try:
            llm.generate("a", GREEDY.with_(max_new_tokens=4000))
        except RllamaError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    llm.close()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert all(isinstance(error, EngineClosedError) for error in errors)


def test_ctrl_c_in_generate_aborts_what_runs(llm: LLM) -> None:
    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, GREEDY.with_(max_new_tokens=4000))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert_idle(llm)


FORK = """
import os, sys
from rllama import LLM, SamplingParams
params = SamplingParams(temperature=0, max_new_tokens=20, ignore_eos=True)
llm = LLM(sys.argv[1], n_threads=2)
want = llm.generate("the sea", params).text
child = os.fork()
same = llm.generate("the sea", params).text == want
if child == 0:
    os._exit(0 if same else 3)
assert same
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""

NEVER_CLOSED = """
import sys
from rllama import LLM
llm = LLM(sys.argv[1])
stream = llm.stream("the sea")
next(stream)
"""


@pytest.mark.parametrize("script", [FORK, NEVER_CLOSED], ids=["fork", "never-closed"])
def test_process_ends_well(tiny_model: Path, script: str) -> None:
    command = [sys.executable, "-c", script, str(tiny_model)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")


def test_step_bytes_are_weights_read_plus_cache(llm: LLM) -> None:
    cfg, views = llm.config, llm.loaded.checkpoint.tensors
    embed = views["embed"].n_bytes
    weights = sum(view.n_bytes for view in views.values()) - embed + embed // cfg.vocab_size
    padded = -(-cfg.head_dim // 16) * 16  # what a value takes
    per_position = cfg.n_layers * cfg.n_kv_heads * (cfg.head_dim + padded) * 4
    assert llm.loaded.step_bytes(0) == weights
    assert llm.loaded.step_bytes(100) == weights + 100 * per_position


def test_llm_with_a_window_plans_and_holds_less(tmp_path: Path) -> None:
    """A file whose layers see 100 positions back: far smaller a cache, the same tokens each way."""
    cfg = tiny_config(max_seq_len=4096, head_dim=16)
    raw = raw_gguf(cfg, random_model(cfg, seed=1), vocab=small_vocab(cfg.vocab_size))
    raw.kvs["llama.attention.sliding_window"] = (4, 100)
    path = tmp_path / "windowed.gguf"
    path.write_bytes(raw.to_bytes())
    prompt, params = [5] * 700, SamplingParams(temperature=0, max_new_tokens=200, ignore_eos=True)
    answers = []
    for chunk in (64, 500):
        with LLM(path, max_seq_len=4096, n_pages=64, max_batch_tokens=chunk) as llm:
            plan, views = llm.loaded.plan, float64_of(llm.loaded.checkpoint.tensors)
            assert llm.config.windows == (100, 100)
            assert plan.cache_bytes < 64 * plan.page_bytes // 3
            assert llm.loaded.step_bytes(4000) == llm.loaded.step_bytes(100)
            answers.append(llm.generate(prompt, params).token_ids)
            got = llm.logits(prompt[:150])
            assert relative_error(got, ref_forward(llm.config, views, prompt[:150])) < 5e-6
    assert answers[0] == answers[1]
