"""The native chain against the numpy chain, and both against closed forms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllama.config import GenerationDefaults, ResolvedSampling, SamplingParams
from rllama.engine import _sampler, sampling
from rllama.errors import BackendError

# Words of the test vectors that come with Random123: counter, key, result.
KNOWN_PHILOX = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def params(**changes: object) -> ResolvedSampling:
    plain = {"temperature": 1.0, "top_k": 0, "seed": 1, **changes}
    return SamplingParams(**plain).resolved(GenerationDefaults())  # type: ignore[arg-type]


def native(
    logits: np.ndarray,
    p: ResolvedSampling,
    positions: Sequence[int],
    *,
    n_vocab: int | None = None,
    seen: Sequence[int] = (),
    choice: int = 0,
    level: str = "",
) -> list[int]:
    n_vocab = n_vocab or logits.shape[-1]
    chain = _sampler.Chain(
        n_vocab=n_vocab, temperature=p.temperature, top_k=p.top_k, top_p=p.top_p, min_p=p.min_p,
        repetition_penalty=p.repetition_penalty, seed=p.seed or 0, choice=choice,
    )  # fmt: skip
    chain.see(list(seen))
    sampler = _sampler.Sampler(level)
    rows = np.ascontiguousarray(logits, np.float32).reshape(1, -1)
    return [sampler.draw(chain, rows, 0, position) for position in positions]


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Softmax in f64."""
    x = logits.astype(np.float64) / temperature
    e = np.exp(x - x.max())
    return e / e.sum()


def assert_drawn_from(expected: np.ndarray, p: ResolvedSampling, logits: np.ndarray) -> None:
    """Chi-square over 100,000 draws, at a chance of about 1 in 10,000 to fail if all is well."""
    n = 100_000
    counts = np.bincount(native(logits, p, range(n)), minlength=len(expected))
    assert np.all(counts[expected == 0] == 0)
    want = expected[expected > 0] * n
    chi2 = float(((counts[expected > 0] - want) ** 2 / want).sum())
    dof = max(len(want) - 1, 1)
    limit = dof * (1 - 2 / (9 * dof) + 3.72 * math.sqrt(2 / (9 * dof))) ** 3  # Wilson-Hilferty
    assert chi2 < limit


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_PHILOX, ids=["zeros", "ones", "pi"])
def test_philox_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    assert sampling.philox(counter, key) == words
    assert tuple(_sampler.philox(list(counter), list(key))) == words


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**40))
def test_uniform_native_equals_python(seed: int, choice: int, position: int) -> None:
    u = sampling.uniform(seed, choice, position)
    assert u == _sampler.uniform(seed, choice, position)
    assert 0.0 <= u < 1.0
    assert u * 2**53 == int(u * 2**53)


def test_uniform_differs_by_seed_choice_and_position() -> None:
    keys = [(s, c, p) for s in (0, 1, 2**63) for c in (0, 1, 2) for p in (0, 1, 2**33)]
    assert len({_sampler.uniform(*key) for key in keys}) == len(keys)


def test_exp_neg_is_accurate_and_equal_in_both() -> None:
    x = -np.concatenate([np.linspace(0, 90, 200_001), [0.0, 1e-30, 1e30, np.inf]])
    x = x.astype(np.float32)
    got = _sampler.exp_neg(x)
    assert np.array_equal(got, sampling.exp_neg(x))
    true = np.exp(np.maximum(x, -87).astype(np.float64))
    assert np.max(np.abs(got / true - 1)) < 2e-7
    assert got[0] == 1.0


RANDOM_LOGITS = st.sampled_from(
    ["normal", "ties", "peaked", "flat", "masked", "huge", "tiny", "zeros", "equal", "text", "wide"]
)
LEVELS = _sampler.levels()


def make_logits(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal(n)
    if kind == "ties":
        x = np.round(x)
    elif kind == "peaked":
        x = x * 8
    elif kind == "flat":
        x = x * 1e-3
    elif kind == "masked":
        x = np.where(rng.random(n) < 0.7, -np.inf, x)
        x[rng.integers(n)] = 0.0
    elif kind == "huge":
        x = x * 1e37
    elif kind == "tiny":
        x = x * 1e-42  # below the smallest normal number
    elif kind == "zeros":
        x = np.where(rng.random(n) < 0.5, -0.0, 0.0)
    elif kind == "equal":
        x = np.full(n, x[0])
    elif kind == "text":
        few = rng.integers(0, n, 1 + n // 400)
        x[few] += 4.0 + rng.exponential(4.0, len(few))
        x = np.round(x * 16) / 16
    elif kind == "wide":
        x = np.sign(x) * np.exp(rng.uniform(-60, 60, n))
    return x.astype(np.float32)


@settings(max_examples=250, deadline=None)
@given(
    kind=RANDOM_LOGITS,
    n=st.one_of(st.integers(1, 40), st.integers(100, 300), st.sampled_from([512, 1025, 4000])),
    temperature=st.sampled_from([0.0, 1e-40, 0.1, 0.7, 1.0, 1.5, 100.0]),
    top_k=st.sampled_from([0, 1, 2, 20, 40, 250, 100_000]),
    top_p=st.sampled_from([1e-9, 0.1, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 1e-12, 0.05, 0.5, 1.0]),
    penalty=st.sampled_from([0.5, 1.0, 1.3]),
    seed=st.integers(0, 2**64 - 1),
    n_hidden=st.integers(0, 5),
    level=st.sampled_from(LEVELS),
)
def test_choose_native_equals_numpy(
    kind: str, n: int, temperature: float, top_k: int, top_p: float, min_p: float, penalty: float,
    seed: int, n_hidden: int, level: str,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    logits = np.concatenate([make_logits(kind, n, rng), np.full(n_hidden, 1e38, np.float32)])
    seen = rng.integers(0, n + n_hidden, 10).tolist()
    p = params(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed,
        repetition_penalty=penalty,
    )  # fmt: skip
    before = logits.copy()
    positions = range(12)
    got = native(logits, p, positions, n_vocab=n, seen=seen, choice=3, level=level)
    assert np.array_equal(logits, before)
    for position, token_id in zip(positions, got, strict=True):
        u = sampling.uniform(seed, 3, position)
        assert token_id == sampling.choose(logits, p, n_vocab=n, seen=seen, u=u)


@pytest.mark.parametrize("top_k", [0, 20, 1000, 9000])
@pytest.mark.parametrize("top_p", [0.5, 0.95, 1.0])
def test_choose_native_equals_numpy_on_a_large_vocabulary(top_k: int, top_p: float) -> None:
    rng = np.random.default_rng(11)
    for sigma in (0.01, 1.0, 3.0):
        logits = (rng.standard_normal(32_003) * sigma).astype(np.float32)
        p = params(top_k=top_k, top_p=top_p, min_p=0.001, seed=5)
        got = native(logits, p, range(30))
        for position, token_id in enumerate(got):
            u = sampling.uniform(5, 0, position)
            assert token_id == sampling.choose(logits, p, n_vocab=32_003, seen=(), u=u)


def assert_equal_on_a_large_vocabulary(
    kind: str, n: int, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    """Every level against the numpy chain, on two draws that lie in different parts of the row."""
    logits = make_logits(kind, n, np.random.default_rng(seed))
    p = params(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    want = [
        sampling.choose(logits, p, n_vocab=n, seen=(), u=sampling.uniform(seed, 0, position))
        for position in range(2)
    ]
    for level in LEVELS:
        assert native(logits, p, range(2), level=level) == want, level


LARGE = {
    "kind": RANDOM_LOGITS,
    "n": st.sampled_from([16_384, 32_001, 131_072]),
    "temperature": st.sampled_from([1e-3, 0.8, 1.0, 3.0, 100.0]),
    "top_k": st.sampled_from([0, 0, 40, 5000]),
    "top_p": st.sampled_from([1e-9, 0.3, 0.95, 0.999, 1.0 - 2.0**-53, 1.0]),
    "min_p": st.sampled_from([0.0, 0.0, 1e-9, 0.05]),
    "seed": st.integers(0, 2**32 - 1),
}


@settings(max_examples=50, deadline=None)
@given(**LARGE)  # type: ignore[arg-type]
def test_choose_on_a_large_vocabulary_equals_numpy_at_every_level(**drawn: object) -> None:
    assert_equal_on_a_large_vocabulary(**drawn)  # type: ignore[arg-type]


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(**LARGE)  # type: ignore[arg-type]
def test_choose_on_a_large_vocabulary_equals_numpy_many_times(**drawn: object) -> None:
    assert_equal_on_a_large_vocabulary(**drawn)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("top_p", [0.2, 0.5, 0.9])
def test_nucleus_of_many_equal_logits_keeps_the_lower_ids(level: str, top_p: float) -> None:
    n = 12_000
    logits = np.zeros(n, np.float32)
    logits[::2] = -1e-40  # half of them are less, but weigh as much
    n_kept = math.ceil(top_p * n)
    odd = np.arange(1, n, 2)
    kept = np.concatenate([odd, np.arange(0, n, 2)])[:n_kept]
    got = native(logits, params(top_p=top_p), range(200), level=level)
    assert set(got) <= set(kept.tolist())
    assert max(got) > np.quantile(kept, 0.9)


@pytest.mark.parametrize("level", LEVELS)
def test_nucleus_survives_a_sample_that_misleads(level: str) -> None:
    n = 64_000
    logits = np.full(n, -3.0, np.float32)
    logits[np.arange(n) % 128 >= 4] = np.linspace(-1, 1, n - n // 32, dtype=np.float32)
    for top_p in (0.05, 0.6, 0.99):
        p = params(top_p=top_p, seed=2)
        for position, token_id in enumerate(native(logits, p, range(5), level=level)):
            u = sampling.uniform(2, 0, position)
            assert token_id == sampling.choose(logits, p, n_vocab=n, seen=(), u=u)


def test_min_p_compares_rounded_weights() -> None:
    logits = -np.linspace(9, 23, 5000, dtype=np.float32)
    logits[0] = 0.0
    weights = np.rint(sampling.exp_neg(logits).astype(np.float64) / sampling.WEIGHT_UNIT)
    for i in (100, 2000, 4000):
        p = params(min_p=float(weights[i] * sampling.WEIGHT_UNIT), seed=4, temperature=1.0)
        for position, token_id in enumerate(native(logits, p, range(200))):
            u = sampling.uniform(4, 0, position)
            assert token_id == sampling.choose(logits, p, n_vocab=5000, seen=(), u=u)


@pytest.mark.parametrize("kind", ["normal", "text", "masked", "tiny"])
def test_logprobs_are_the_same_bits_at_every_level(kind: str) -> None:
    rows = make_logits(kind, 20_001, np.random.default_rng(6)).reshape(1, -1)
    got = [_sampler.Sampler(level).logprobs(rows, 0, 20_001, 77, 20) for level in LEVELS]
    assert all(one == got[0] for one in got)


def test_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="no such level"):
        _sampler.Sampler("abacus")


LOGITS = np.array([2.0, -1.0, 0.5, 2.0, 0.0, -3.0, 1.5, -0.5, 0.25, 1.0], np.float32)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_softmax(temperature: float) -> None:
    p = params(temperature=temperature, seed=42)
    assert_drawn_from(probabilities(LOGITS, temperature), p, LOGITS)


def test_draws_top_k_ties_keep_the_lower_id() -> None:
    logits = np.array([1.0, 0.0, 1.0, 0.0, 0.0], np.float32)
    expected = probabilities(logits) * [1, 1, 1, 0, 0]
    assert_drawn_from(expected / expected.sum(), params(top_k=3, seed=3), logits)


def test_draws_top_p_keeps_the_token_that_crosses() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1])).astype(np.float32)
    expected = np.array([0.4, 0.3, 0.2, 0.0]) / 0.9
    assert_drawn_from(expected, params(top_p=0.75, seed=9), logits)


def test_draws_min_p_is_relative_to_the_likeliest() -> None:
    logits = np.log(np.array([0.5, 0.26, 0.24 - 1e-3, 1e-3])).astype(np.float32)
    expected = np.array([0.5, 0.26, 0.0, 0.0]) / 0.76
    assert_drawn_from(expected, params(min_p=0.5, seed=10), logits)


def test_draws_repetition_penalty_over_the_whole_vocabulary() -> None:
    expected = LOGITS.copy()
    for token_id in (0, 1, 9):
        x = expected[token_id]
        expected[token_id] = x / 2 if x > 0 else x * 2
    p = params(repetition_penalty=2.0, seed=8)
    chain_draws = native(LOGITS, p, range(100_000), seen=[0, 1, 9, 9, 9])
    counts = np.bincount(chain_draws, minlength=10) / 100_000
    assert np.max(np.abs(counts - probabilities(expected))) < 0.006


def test_draws_full_vocabulary_of_many_blocks() -> None:
    logits = np.sin(np.arange(1000)).astype(np.float32) * 2
    assert_drawn_from(probabilities(logits), params(seed=77), logits)


def test_greedy_takes_the_lower_of_equal_ids() -> None:
    logits = np.zeros(1000, np.float32)
    logits[[700, 300]] = 5.0
    assert native(logits, params(temperature=0.0), [0]) == [300]


def test_greedy_with_penalty_discourages() -> None:
    logits = np.array([3.0, 2.0, -1.0], np.float32)
    assert native(logits, params(temperature=0.0, repetition_penalty=2.0), [0], seen=[0]) == [1]
    negative = np.array([-1.0, -1.5], np.float32)
    assert native(negative, params(temperature=0.0, repetition_penalty=2.0), [0], seen=[0]) == [1]


def test_padded_rows_are_never_chosen() -> None:
    logits = np.zeros(70, np.float32)
    logits[64:] = 50.0
    assert max(native(logits, params(), range(2000), n_vocab=64)) < 64
    assert native(logits, params(temperature=0.0), [0], n_vocab=64) == [0]


def test_read_only_logits_are_left_alone() -> None:
    logits = LOGITS.copy()
    logits.flags.writeable = False
    p = params(temperature=0.0, repetition_penalty=9.0)
    assert native(logits, p, [0], seen=[0, 3]) == [6]


@pytest.mark.parametrize("n", [5, 200, 1000])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("where", [0, -1])
def test_bad_logits_raise(n: int, bad: float, where: int) -> None:
    logits = np.zeros(n, np.float32)
    logits[where] = bad
    for changes in ({"temperature": 0.0}, {"top_k": 3}, {}):
        with pytest.raises(BackendError, match="logits are not finite"):
            native(logits, params(**changes), [0])
    with pytest.raises(BackendError, match="logits are not finite"):
        _sampler.Sampler().logprobs(logits.reshape(1, -1), 0, n, 0, 0)


def test_logits_without_any_finite_one_raise() -> None:
    with pytest.raises(BackendError, match="logits are not finite"):
        native(np.full(300, -np.inf, np.float32), params(), [0])


@pytest.mark.parametrize("n", [3, 130, 5000])
def test_logprobs_are_natural_logs_of_softmax(n: int) -> None:
    rng = np.random.default_rng(n)
    rows = (rng.standard_normal((2, n + 2)) * 4).astype(np.float32)
    expected = np.log(probabilities(rows[1, :n]))
    value, top = _sampler.Sampler().logprobs(rows, 1, n, 2, 5)
    assert value == pytest.approx(expected[2], abs=1e-6)
    order = np.argsort(-rows[1, :n], kind="stable")[:5]
    assert [token_id for token_id, _ in top] == order.tolist()
    assert [v for _, v in top] == pytest.approx(expected[order].tolist(), abs=1e-6)


@pytest.mark.parametrize("bad", [np.zeros((1, 4)), np.zeros((4, 2), np.float32).T], ids=str)
def test_draw_refuses_other_arrays(bad: np.ndarray) -> None:
    chain = _sampler.Chain(
        n_vocab=2, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=0,
        choice=0,
    )  # fmt: skip
    with pytest.raises((TypeError, ValueError)):
        _sampler.Sampler().draw(chain, bad, 0, 0)


def test_draw_refuses_a_row_outside_the_array() -> None:
    chain = _sampler.Chain(
        n_vocab=2, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=0,
        choice=0,
    )  # fmt: skip
    for shape, row in (((1, 2), 1), ((1, 2), -1), ((1, 1), 0), ((2,), 0)):
        with pytest.raises(ValueError, match="logits"):
            _sampler.Sampler().draw(chain, np.zeros(shape, np.float32), row, 0)
