"""What is said of raw samples: median, spread, and an interval that covers what it claims."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.machine import describe_machine
from benchmarks.options import BenchOptions
from benchmarks.speed import Target, _median_interval, relative_spread, results, summarize
from quantize.errors import BadInput
from quantize.results import EvalResult


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 8, 9, 20, 50])
def test_interval_of_the_median_covers_what_it_says(n: int) -> None:
    low, coverage = _median_interval(n)
    # The median lies between order statistics low+1 and n-low unless too few samples fall on one of its
    # sides.
    exact = 1 - 2 * stats.binom.cdf(low, n, 0.5)
    assert coverage == pytest.approx(max(exact, 0.0))
    if n >= 6:
        assert coverage >= 0.95
        tighter = 1 - 2 * stats.binom.cdf(low + 1, n, 0.5)
        assert tighter < 0.95
    else:
        assert low == 0


def test_interval_covers_in_simulation() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(600):
        low, high = summarize(rng.lognormal(0, 1, 15).tolist(), {})["interval"]
        hits += low <= 1.0 <= high
    assert 0.93 <= hits / 600 <= 0.99


def test_summary_agrees_with_numpy() -> None:
    values = [3.0, 1.0, 4.0, 1.5, 9.0]
    summary = summarize(values, {"depth": 0})
    assert summary["value"] == np.median(values)
    assert summary["stderr"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(5))
    assert summary["interval"] == (1.0, 9.0)
    assert summary["detail"]["mad"] == np.median(np.abs(np.array(values) - np.median(values)))
    assert summary["detail"]["depth"] == 0
    single = summarize([2.0], {})
    assert (single["stderr"], single["interval"]) == (None, None)


def raw(prefill_s: list[float], step_s: list[list[float]], batch: int = 1) -> dict:
    return {
        "import_seconds": 1.0, "load_seconds": 0.5, "context": 256, "prefill": 100,
        "batches": [{
            "batch": batch, "warm_up_seconds": 0.1, "prefill_seconds": prefill_s,
            "first_token_seconds": [s + 0.001 for s in prefill_s],
            "decodes": [{"depth": 0, "decode": 4, "step_seconds": step_s}],
        }],
        "peak_rss_bytes": 1000, "rss_before_load_bytes": 500, "gpu_bytes": None,
        "runtime": {"backend": "transformers"},
    }  # fmt: skip


def test_tokens_per_second_are_tokens_over_seconds_and_all_rounds_count() -> None:
    said: list[str] = []
    target = Target("x", Path("x"), 42)
    target.samples = [raw([0.5, 0.5], [[0.1] * 4, [0.1] * 4]), raw([1.0, 1.0], [[0.2] * 4, [0.2] * 4])]
    found = {
        r.metric: r
        for r in results(target, BenchOptions(repetitions=2, rounds=2), describe_machine(), said.append)
    }
    assert found["pp_tokens_per_s"].samples == pytest.approx((200, 200, 100, 100))
    assert found["pp_tokens_per_s"].protocol == "pp100"
    assert found["tg_tokens_per_s"].samples == pytest.approx((10, 10, 5, 5))
    assert found["tg_tokens_per_s"].protocol == "tg4"
    assert found["ttft_ms"].value == pytest.approx(751)
    several = Target("x", Path("x"), 42, samples=[raw([0.5], [[0.1] * 4], batch=4)])
    options = BenchOptions(repetitions=2, rounds=2, batches=[4])
    found_4 = {r.metric: r for r in results(several, options, describe_machine(), [].append)}
    assert (found_4["pp_tokens_per_s"].value, found_4["pp_tokens_per_s"].protocol) == (
        pytest.approx(800),
        "pp100@b4",
    )
    assert found["load_ms"].n == 2
    assert found["size_bytes"].value == 42
    assert sum("context holds 256 tokens" in line for line in said) == 2
    assert sum("too noisy to compare" in line for line in said) == 2
    assert found["pp_tokens_per_s"].detail["worthless"]


def test_spread_is_the_middle_half_over_the_median() -> None:
    values = (8.0, 9.0, 10.0, 11.0, 12.0)
    result = EvalResult("x", "pp_tokens_per_s", "pp512", 10.0, samples=values)
    assert relative_spread(result) == pytest.approx(np.subtract(*np.percentile(values, [75, 25])) / 10)


def test_a_workload_of_nothing_is_refused() -> None:
    with pytest.raises(BadInput):
        BenchOptions.of(prefill=0)
