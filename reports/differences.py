"""Differences between two artifacts' results, always paired: chunk by chunk or item by item."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evals import statistics
from quantize.results import EvalResult

RESAMPLES = 1000


@dataclass(frozen=True)
class Difference:
    """``value`` with its 95 % interval; ``holm`` is ``p_value`` corrected for the number of candidates looked
    at."""

    value: float
    interval: tuple[float, float] | None
    p_value: float | None = None
    holm: float | None = None
    n: int = 0

    @property
    def significant(self) -> bool:
        p = self.holm if self.holm is not None else self.p_value
        if p is not None:
            return p < 0.05
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def _token_counts(result: EvalResult) -> np.ndarray:
    counts = result.detail.get("chunk_tokens")
    if counts is None:
        return np.full(len(result.samples), result.n / max(1, len(result.samples)))
    return np.asarray(counts, np.float64)


def perplexity_change(mine: EvalResult, reference: EvalResult) -> Difference | None:
    """Relative change of perplexity, candidate over reference minus 1, from per-chunk mean negative
    log-likelihoods. None where they do not pair.
    """
    found = mean_change(mine, reference)
    if found is None:
        return None
    bounds = None if found.interval is None else (_expm1(found.interval[0]), _expm1(found.interval[1]))
    return replace(found, value=_expm1(found.value), interval=bounds)


def mean_change(mine: EvalResult, reference: EvalResult) -> Difference | None:
    """Difference of two means over tokens, candidate minus reference, from per-chunk means.

    None where they do not pair: other text, other token ids, or not the same chunks.
    """
    if (
        mine.value is None
        or reference.value is None
        or not mine.samples
        or len(mine.samples) != len(reference.samples)
    ):
        return None
    if mine.environment.get("ids_sha256") != reference.environment.get("ids_sha256"):
        return None
    counts = _token_counts(mine)
    if (
        len(counts) != len(mine.samples)
        or mine.excluded != reference.excluded
        or counts.min() < 0
        or not counts.sum()
    ):
        return None
    a, b = np.asarray(mine.samples) * counts, np.asarray(reference.samples) * counts
    found = statistics.paired_mean_difference(a, b, counts, resamples=RESAMPLES)
    low, high = found.interval
    bounds = None if math.isnan(low) else (low, high)
    return Difference(found.value, bounds, found.p_value, n=found.n)


def _expm1(value: float) -> float:
    """Beyond what a float holds there is nothing to compare."""
    return math.expm1(min(value, 700.0))


def measured_change(ratio: EvalResult) -> Difference | None:
    """The same from a ``ppl_ratio`` result, which was made from the tokens themselves."""
    if ratio.value is None:
        return None
    bounds = (ratio.interval[0] - 1, ratio.interval[1] - 1) if ratio.interval else None
    return Difference(ratio.value - 1, bounds, ratio.detail.get("p_value"), n=len(ratio.samples) or ratio.n)


def accuracy_change(mine: EvalResult, reference: EvalResult) -> Difference | None:
    """Difference of accuracies in the same items: interval by paired bootstrap, p by exact McNemar.

    None where they do not pair. What was computed when they were measured is used unchanged.
    """
    known = mine.detail.get("vs_reference")
    if known and known.get("interval"):
        low, high = known["interval"]
        return Difference(known["difference"], (low, high), known.get("p_mcnemar"), n=mine.n)
    if not mine.samples or len(mine.samples) != len(reference.samples):
        return None
    for name in ("items_sha256", "task_sha256"):
        if mine.environment.get(name, mine.detail.get(name)) != reference.environment.get(
            name, reference.detail.get(name)
        ):
            return None
    a, b = np.asarray(mine.samples), np.asarray(reference.samples)
    right_or_wrong = set(mine.samples) | set(reference.samples) <= {0.0, 1.0}
    p = statistics.mcnemar(a, b) if right_or_wrong else None
    interval = statistics.mean_interval(a - b, np.ones(len(a)), resamples=RESAMPLES)
    return Difference(float((a - b).mean()), interval, p, n=len(a))


def adjust(differences: Sequence[Difference]) -> list[Difference]:
    """Holm's correction over all of ``differences`` that have a p-value."""
    have = [i for i, d in enumerate(differences) if d.p_value is not None]
    corrected = statistics.holm([differences[i].p_value or 0.0 for i in have])
    out = list(differences)
    for i, p in zip(have, corrected, strict=True):
        out[i] = replace(out[i], holm=p)
    return out
