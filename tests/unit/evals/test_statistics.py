import math

import numpy as np
import pytest

from evals import statistics


def correlated_tokens(rng: np.random.Generator, chunks: int, tokens: int, rho: float = 0.6) -> np.ndarray:
    """(chunks, tokens) skewed token losses: correlated along a chunk, and chunks that differ in
    difficulty."""
    noise = rng.exponential(size=(chunks, tokens))
    out = np.empty((chunks, tokens))
    out[:, 0] = noise[:, 0]
    for t in range(1, tokens):
        out[:, t] = rho * out[:, t - 1] + (1 - rho) * noise[:, t]
    return out + 2.0 + rng.gamma(4.0, 0.1, size=(chunks, 1))


TRUE_MEAN = 1.0 + 2.0 + 0.4


def test_mcnemar_is_the_exact_binomial_test() -> None:
    a = np.array([1] * 40 + [1] * 12 + [0] * 3 + [0] * 45)
    b = np.array([1] * 40 + [0] * 12 + [1] * 3 + [0] * 45)
    # 12 against 3 discordant: twice the sum of C(15, k) for k up to 3, over 2^15
    want = 2 * sum(math.comb(15, k) for k in range(4)) / 2**15
    assert statistics.mcnemar(a, b) == pytest.approx(want)
    assert statistics.mcnemar(a, a) == 1.0
    with pytest.raises(ValueError, match="paired"):
        statistics.mcnemar(a, b[:-1])


def test_holm_steps_down() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.9, 0.001]) == pytest.approx([0.9, 0.002])
    assert statistics.holm([]) == []


def test_tools_own_standard_errors() -> None:
    values = np.array([1.0, 0, 1, 1, 0, 1, 1, 1])
    lm_eval = pytest.importorskip("lm_eval.api.metrics")
    assert statistics.mean_stderr(values) == pytest.approx(lm_eval.mean_stderr(values.tolist()))
    # llama-perplexity, beside "Same top p"
    assert statistics.mean_stderr(values) == pytest.approx(math.sqrt(0.75 * 0.25 / 7))


def test_bootstrap_of_equal_chunks_is_a_point() -> None:
    low, high = statistics.mean_interval(np.full(50, 6.0), np.full(50, 2))
    assert (low, high) == (3.0, 3.0)
    assert all(math.isnan(x) for x in statistics.mean_interval(np.array([1.0]), np.array([1])))


def test_interval_agrees_with_students_t_for_a_mean() -> None:
    from scipy import stats

    values = np.random.default_rng(3).normal(5, 2, 400)
    low, high = statistics.mean_interval(values, np.ones(400), resamples=20000)
    want = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert (low, high) == pytest.approx(want, abs=0.02)


def test_many_chunks_are_resampled_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=300)
    whole = statistics.mean_interval(values, np.ones(300), resamples=4000)
    monkeypatch.setattr(statistics, "_BATCH_ELEMENTS", 300 * 100)
    pieces = statistics.mean_interval(values, np.ones(300), resamples=4000)
    assert pieces == pytest.approx(whole, abs=0.02)


def test_percentiles_of_chunks() -> None:
    rng = np.random.default_rng(0)
    values, offsets = rng.exponential(size=4000), np.arange(0, 4001, 20)
    (median, high) = statistics.percentile_interval(values, offsets, [50, 99])
    assert median[0] < math.log(2) < median[1]
    assert high[0] < -math.log(0.01) < high[1]
    assert median[1] - median[0] < 0.15


def test_paired_difference_is_narrower_than_either() -> None:
    rng = np.random.default_rng(0)
    reference = correlated_tokens(rng, 200, 16).sum(1)
    candidate = reference + rng.normal(0.16, 0.2, 200)
    found = statistics.paired_mean_difference(candidate, reference, np.full(200, 16))
    single = statistics.mean_interval(reference, np.full(200, 16))
    assert found.interval[0] < 0.01 < found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.1 * (single[1] - single[0])
    assert found.p_value is not None
    assert found.p_value < 1e-6
    assert statistics.paired_mean_difference(reference, reference, np.full(200, 16)).p_value == 1.0


def test_accuracy_interval_at_the_edge() -> None:
    low, high = statistics.accuracy_interval(np.ones(20))
    assert high == 1
    assert 0.8 < low < 0.9


@pytest.mark.parametrize("chunks", [100, 300])
def test_intervals_cover_what_they_say(chunks: int) -> None:
    """95 % intervals of the mean over correlated tokens cover the truth 93 to 97 times in 100, where the
    formula that takes tokens as independent does not."""
    rng = np.random.default_rng(chunks)
    tokens, repeats = 32, 1500
    covered = naive = 0
    counts = np.full(chunks, tokens)
    for _ in range(repeats):
        values = correlated_tokens(rng, chunks, tokens)
        low, high = statistics.perplexity_interval(values.sum(1), counts)
        covered += low <= math.exp(TRUE_MEAN) <= high
        half = 1.96 * values.std() / math.sqrt(values.size)
        naive += abs(values.mean() - TRUE_MEAN) <= half
    assert 0.93 <= covered / repeats <= 0.97
    assert naive / repeats < 0.8


def test_unequal_chunks_are_covered_too() -> None:
    rng = np.random.default_rng(7)
    repeats, covered = 1500, 0
    for _ in range(repeats):
        counts = rng.integers(4, 33, 150)
        values = correlated_tokens(rng, 150, 32)
        sums = np.array([row[:n].sum() for row, n in zip(values, counts, strict=True)])
        low, high = statistics.mean_interval(sums, counts)
        covered += low <= TRUE_MEAN <= high
    assert 0.93 <= covered / repeats <= 0.97


def test_tests_hold_their_level() -> None:
    """Of candidates that are no worse, 5 % and no more are called different; Holm keeps that for a family of
    six."""
    rng = np.random.default_rng(1)
    repeats, chunks, family = 800, 100, 6
    counts = np.full(chunks, 16)
    single = any_of_family = mcnemar = 0
    for _ in range(repeats):
        reference = correlated_tokens(rng, chunks, 16).sum(1)
        p_values = []
        for _ in range(family):
            candidate = reference + rng.normal(0, 1, chunks) * rng.exponential(1, chunks)
            p = statistics.paired_mean_difference(candidate, reference, counts, resamples=2).p_value
            assert p is not None
            p_values.append(p)
        single += p_values[0] < 0.05
        any_of_family += min(statistics.holm(p_values)) < 0.05
        right = rng.random(120) < 0.6
        disagree = rng.random(120) < 0.1
        a, b = (np.where(disagree, rng.random(120) < 0.5, right) for _ in range(2))
        mcnemar += statistics.mcnemar(a, b) < 0.05
    assert single / repeats == pytest.approx(0.05, abs=0.025)
    assert any_of_family / repeats <= 0.07
    assert mcnemar / repeats <= 0.065
