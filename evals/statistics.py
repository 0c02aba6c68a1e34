"""Uncertainty of what was measured. ``stderr`` of a result is the named tool's own formula; the intervals
here are ours.

Tokens of one chunk are correlated, so the chunk is the unit that is resampled (block bootstrap); differences
between artifacts are always paired, chunk by chunk or item by item. All intervals are two-sided.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 2000
FEW_CHUNKS = 100  # below this the coverage of a bootstrap interval is not what it says; results are flagged
_BATCH_ELEMENTS = 2_000_000

Array = np.ndarray


@dataclass(frozen=True)
class Difference:
    """Of two paired measurements, candidate minus reference (or the ratio where said so)."""

    value: float
    interval: tuple[float, float]
    p_value: float | None = None
    n: int = 0


def mean_stderr(values: Array) -> float:
    """Standard error of a mean of independent values, sample variance over n (lm-eval's ``mean_stderr``)."""
    n = len(values)
    return float(np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan


def bootstrap_levels(chunks: int, confidence: float = 0.95) -> tuple[float, float]:
    """Percentiles, in per cent, of a bootstrap distribution that make an interval of ``confidence``.

    A percentile interval is too short by sqrt((n-1)/n) and uses the normal for Student's t; this widens it by
    both.
    Source: T. Hesterberg, "What Teachers Should Know About the Bootstrap" (2015), section 5.2, the expanded
    percentile interval.
    """
    from scipy import special  # not scipy.stats, whose import takes longer than the bootstrap of a small text

    if chunks < 2:
        return 0.0, 100.0
    z = math.sqrt(chunks / (chunks - 1)) * float(special.stdtrit(chunks - 1, (1 - confidence) / 2))
    tail = 100 * float(special.ndtr(z))
    return tail, 100 - tail


def resampled_weights(chunks: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each chunk is drawn: float64 arrays (some resamples, chunks) that together make ``resamples``
    rows."""
    if chunks * resamples <= _BATCH_ELEMENTS:
        yield _weights(chunks, resamples, seed)
        return
    rng = np.random.default_rng(seed)
    step = max(1, _BATCH_ELEMENTS // max(1, chunks))
    for begin in range(0, resamples, step):
        yield _draw(rng, chunks, min(step, resamples - begin))


@lru_cache(maxsize=4)
def _weights(chunks: int, resamples: int, seed: int) -> Array:
    """Kept, since every figure of one measurement resamples the same chunks."""
    return _draw(np.random.default_rng(seed), chunks, resamples)


def _draw(rng: np.random.Generator, chunks: int, resamples: int) -> Array:
    return rng.multinomial(chunks, np.full(chunks, 1 / chunks), resamples).astype(np.float64)


def block_bootstrap(
    columns: Array,
    statistic: Callable[[Array], Array],
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of ``statistic`` over resampled chunks.

    ``columns``: (chunks, k) per-chunk sums; ``statistic`` maps resampled totals (resamples, k) to
    (resamples,) values.
    """
    columns = np.asarray(columns, np.float64)
    if columns.ndim == 1:
        columns = columns[:, None]
    chunks = len(columns)
    if chunks < 2:
        return math.nan, math.nan
    values = np.concatenate(
        [statistic(weights @ columns) for weights in resampled_weights(chunks, resamples, seed)]
    )
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(values, bootstrap_levels(chunks, confidence))
    return float(low), float(high)


def ratio_of_sums(totals: Array) -> Array:
    """(resamples, 2) totals of values and counts -> their means."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(totals[:, 0] / totals[:, 1])


def mean_interval(
    sums: Array, counts: Array, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Of a mean over tokens, resampling chunks of ``counts`` tokens that add to ``sums``."""
    return block_bootstrap(np.stack([sums, counts], 1), ratio_of_sums, seed=seed, resamples=resamples)


def perplexity_interval(
    nll_sums: Array, counts: Array, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Of exp(mean negative log-likelihood)."""
    low, high = mean_interval(nll_sums, counts, seed=seed, resamples=resamples)
    return _exp(low), _exp(high)


def _exp(x: float) -> float:
    return math.exp(min(x, 700.0)) if not math.isnan(x) else x


def percentile_interval(
    values: Array, offsets: Array, percent: Sequence[float], *, resamples: int = 400, seed: int = 0
) -> list[tuple[float, float]]:
    """Of percentiles over tokens, resampling whole chunks. ``values`` (tokens,), NaN excluded; ``offsets``
    (chunks + 1,).

    Works on the values sorted once: a resample only changes how often each counts.
    """
    chunk = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    keep = np.isfinite(values)
    values, chunk = values[keep], chunk[keep]
    chunks = len(offsets) - 1
    if chunks < 2 or not len(values):
        return [(math.nan, math.nan)] * len(percent)
    order = np.argsort(values, kind="stable")
    ordered, chunk = values[order], chunk[order]
    fractions = np.asarray(percent) / 100
    rows = []
    for weights in resampled_weights(chunks, resamples, seed):
        for row in weights:
            running = np.cumsum(row[chunk])
            if running[-1] == 0:
                continue
            positions = np.searchsorted(running, fractions * running[-1], side="left")
            rows.append(ordered[np.minimum(positions, len(ordered) - 1)])
    low, high = np.percentile(np.array(rows), bootstrap_levels(chunks), axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def paired_mean_difference(
    candidate: Array, reference: Array, counts: Array, *, seed: int = 0, resamples: int = RESAMPLES
) -> Difference:
    """Difference of means over tokens, from per-chunk sums of both over the same tokens.

    ``p_value``: two-sided paired t over chunk means weighted by their tokens; the null is that both are
    equal.
    """
    from scipy import stats

    difference = np.asarray(candidate, np.float64) - np.asarray(reference, np.float64)
    counts = np.asarray(counts, np.float64)
    value = float(difference.sum() / counts.sum())
    interval = mean_interval(difference, counts, seed=seed, resamples=resamples)
    chunks = len(counts)
    if chunks < 2:
        return Difference(value, interval, None, chunks)
    # Ratio estimator: residuals d_c - value * n_c have variance about that of the mean times the square of
    # the total count.
    residual = difference - value * counts
    spread = math.sqrt(float((residual**2).sum()) * chunks / (chunks - 1)) / float(counts.sum())
    p = float(2 * stats.t.sf(abs(value) / spread, chunks - 1)) if spread > 0 else (1.0 if value == 0 else 0.0)
    return Difference(value, interval, p, chunks)


def mcnemar(candidate: Array, reference: Array) -> float:
    """Exact two-sided McNemar p of two right/wrong vectors over the same items: a binomial test of the
    discordant ones."""
    from scipy import stats

    a, b = np.asarray(candidate) > 0.5, np.asarray(reference) > 0.5
    if a.shape != b.shape:
        raise ValueError(f"paired test of {a.shape} against {b.shape} items")
    gained, lost = int((a & ~b).sum()), int((~a & b).sum())
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def accuracy_difference(
    candidate: Array, reference: Array, *, seed: int = 0, resamples: int = RESAMPLES
) -> Difference:
    """Paired: interval by bootstrap over items, p by exact McNemar."""
    a, b = np.asarray(candidate, np.float64), np.asarray(reference, np.float64)
    p = mcnemar(a, b)
    interval = mean_interval(a - b, np.ones(len(a)), seed=seed, resamples=resamples)
    return Difference(float((a - b).mean()), interval, p, len(a))


def accuracy_interval(correct: Array, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a proportion: right also where nearly all or nearly none are correct."""
    from scipy import stats

    n = len(correct)
    if not n:
        return math.nan, math.nan
    interval = stats.binomtest(round(float(np.sum(correct))), n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for having looked at all of them (Holm 1979, step-down), in the order given."""
    count = len(p_values)
    adjusted = [0.0] * count
    running = 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
