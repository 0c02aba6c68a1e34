"""Against naive float64 loops over the definition."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from bigram import Bigram, naive_log_probs, random_table
from other_tools import emulate_llamacpp_base

from evals.divergence import compare, summarize
from evals.kernels import as_tensor, kl_rows, target_log_probs
from evals.perplexity import perplexity, score
from evals.protocols import parse_protocol
from evals.reference import SideBySideReference, cache_bytes, find_cache, write_cache
from evals.rows import Heading, divergence_rows, perplexity_rows
from evals.windows import make_windows
from quantize.errors import BadInput
from quantize.metrics import ALL

TEXT = "".join(chr(97 + (i * i + i // 7) % 23) for i in range(400))


def windows_of(runtime: Bigram, protocol: str = "llamacpp-16"):  # type: ignore[no-untyped-def]
    return make_windows(parse_protocol(protocol), TEXT, runtime.tokenize, ids="runtime")


@pytest.mark.parametrize(
    "protocol", ["llamacpp-16", "gptq-16", "strided-32-8", "exl3-16", "lmeval-wikitext-16"]
)
def test_perplexity_equals_a_naive_loop(protocol: str) -> None:
    runtime = Bigram(random_table(), bos=0)
    windows = windows_of(runtime, protocol)
    nll = []
    for window in windows.windows:
        for position in range(window.first, len(window.tokens) - 1):
            nll.append(-naive_log_probs(runtime.table[window.tokens[position]])[window.tokens[position + 1]])
    p = perplexity(score(runtime, windows))
    n = len(nll)
    mean = sum(nll) / n
    assert p.tokens == n == windows.scored
    assert p.value == pytest.approx(math.exp(mean), rel=1e-6)
    variance = (sum(x * x for x in nll) / n - mean**2) / (n - 1)
    assert p.stderr == pytest.approx(math.exp(mean) * math.sqrt(variance), rel=1e-5)
    assert float(p.chunk_nll.sum()) == pytest.approx(sum(nll), rel=1e-7)


def test_large_logits_lose_nothing() -> None:
    logits = np.array([[3e4, 3e4 - 1, -3e4], [-2e5, -2e5 + 5, -2e5 - 3]], np.float32)
    got = target_log_probs(logits, np.array([1, 0]))
    want = [naive_log_probs(row)[t] for row, t in zip(logits, [1, 0], strict=True)]
    assert got == pytest.approx(want, abs=1e-6)


def naive_divergence(p_table: np.ndarray, q_table: np.ndarray, windows) -> dict[str, list[float]]:  # type: ignore[no-untyped-def]
    out: dict[str, list[float]] = {"kl": [], "dp": [], "same": []}
    for window in windows.windows:
        for position in range(window.first, len(window.tokens) - 1):
            token, target = window.tokens[position], window.tokens[position + 1]
            lp, lq = naive_log_probs(p_table[token]), naive_log_probs(q_table[token])
            out["kl"].append(sum(math.exp(a) * (a - b) for a, b in zip(lp, lq, strict=True)))
            out["dp"].append(math.exp(lq[target]) - math.exp(lp[target]))
            out["same"].append(float(lp.argmax() == lq.argmax()))
    return out


@pytest.mark.parametrize("noise", [1e-4, 0.05, 3.0])
@pytest.mark.parametrize("cached", [True, False])
def test_divergence_equals_a_naive_loop(noise: float, cached: bool, tmp_path: Path) -> None:
    table = random_table()
    reference, candidate = Bigram(table), Bigram(table + random_table(seed=1, scale=noise), chunk=5)
    windows = windows_of(reference)
    rows = write_cache(reference, windows, "k", tmp_path) if cached else SideBySideReference(reference)
    d = compare(rows, candidate, windows)
    s = summarize(d)
    assert s is not None
    want = naive_divergence(reference.table, candidate.table, windows)
    assert s.tokens == len(want["kl"])
    # The cache's grid costs about 1.6e-8 a token, correlated with nothing; side by side is exact to float32's
    # differences.
    assert s.kl_mean == pytest.approx(np.mean(want["kl"]), rel=3e-4, abs=3e-8 if cached else 1e-12)
    assert d.kl == pytest.approx(
        np.array(want["kl"]), rel=2e-2 if cached else 1e-4, abs=1e-6 if cached else 5e-12
    )
    assert s.kl_max == pytest.approx(max(want["kl"]), rel=1e-3, abs=1e-6)
    for percent, value in s.kl_percentiles.items():
        assert value == pytest.approx(np.percentile(want["kl"], percent), rel=1e-2, abs=1e-7)
    assert s.delta_p_rms == pytest.approx(math.sqrt(np.mean(np.square(want["dp"]))), rel=1e-3, abs=1e-7)
    assert s.top1_agreement == np.mean(want["same"])
    assert sum(int(b["tokens"]) for b in s.buckets) == s.tokens
    weighted = sum(b["tokens"] * b["kl_mean"] for b in s.buckets if b["tokens"])
    assert weighted / s.tokens == pytest.approx(s.kl_mean, rel=1e-9)


def test_ratio_and_its_covariance() -> None:
    table = random_table()
    reference, candidate = Bigram(table), Bigram(table + random_table(seed=1, scale=0.3))
    windows = windows_of(reference)
    d = compare(SideBySideReference(reference), candidate, windows)
    s = summarize(d)
    assert s is not None
    a, b = -d.candidate, -d.reference
    n = len(a)
    assert s.ppl_ratio == pytest.approx(math.exp(a.mean() - b.mean()), rel=1e-9)
    # var(a)/(n-1) + var(b)/(n-1) - 2 cov/(n-1) is var(a - b)/(n-1)
    assert s.ppl_ratio_stderr == pytest.approx(s.ppl_ratio * (a - b).std() / math.sqrt(n - 1), rel=1e-6)
    assert s.ln_ppl_correlation == pytest.approx(np.corrcoef(a, b)[0, 1], rel=1e-6)
    assert s.ppl_difference == pytest.approx(s.ppl - s.ppl_reference)


def test_every_row_has_a_metric_with_a_name() -> None:
    table = random_table()
    runtime = Bigram(table, bos=0)
    heading = Heading("a", "", "", {})
    for protocol in ("llamacpp-16", "lmeval-wikitext-16"):
        windows = windows_of(runtime, protocol)
        other = Bigram(table + random_table(seed=1, scale=0.1), bos=0)
        found = perplexity_rows(score(runtime, windows), windows, heading)
        found += divergence_rows(compare(SideBySideReference(runtime), other, windows), windows, heading)
        assert {row.metric for row in found} <= set(ALL)


def test_the_reference_against_itself_gives_nothing(tmp_path: Path) -> None:
    reference = Bigram(random_table(400, scale=6.0))
    windows = windows_of(reference)
    cached = summarize(compare(write_cache(reference, windows, "k", tmp_path), reference, windows))
    exact = summarize(compare(SideBySideReference(reference), reference, windows))
    assert cached is not None
    assert exact is not None
    assert 0 <= cached.kl_mean < 1e-7
    assert cached.kl_max < 1e-6
    assert cached.top1_agreement == exact.top1_agreement == 1
    assert exact.kl_mean == exact.kl_max == 0
    assert cached.ppl_ratio == pytest.approx(1, abs=1e-7)


def test_nearly_equal_models_are_told_apart() -> None:
    """Two float32 log-softmaxes would give noise of 1e-7 here."""
    table = random_table()
    reference = Bigram(table)
    candidate = Bigram(table)
    candidate.table = table * np.float32(1 + 2**-18)
    windows = windows_of(reference)
    d = compare(SideBySideReference(reference), candidate, windows)
    assert d.kl == pytest.approx(
        np.array(naive_divergence(reference.table, candidate.table, windows)["kl"]), rel=1e-2, abs=1e-15
    )
    assert d.kl.max() < 1e-9


def test_cache_size_and_reuse(tmp_path: Path) -> None:
    reference = Bigram(random_table(128))
    windows = windows_of(reference)
    write_cache(reference, windows, "key", tmp_path)
    (folder,) = tmp_path.iterdir()
    size = (folder / "codes.i16").stat().st_size + (folder / "rows.bin").stat().st_size
    assert size == cache_bytes(windows, 128)
    assert size <= 2.2 * 128 * windows.scored
    runs = reference.runs
    assert find_cache(tmp_path, "key") is not None
    assert find_cache(tmp_path, "other") is None
    assert reference.runs == runs


def test_an_interrupted_cache_leaves_nothing(tmp_path: Path) -> None:
    reference = Bigram(random_table())
    windows = windows_of(reference)

    def stop(n: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cache(reference, windows, "key", tmp_path, stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_tokens_are_excluded_and_counted(bad: float, tmp_path: Path) -> None:
    table = random_table()
    broken = table.copy()
    reference = Bigram(table)
    windows = windows_of(reference)
    token = int(windows.windows[0].tokens[10])
    broken[token, 3] = bad
    hit = sum(int((w.tokens[w.first : -1] == token).sum()) for w in windows.windows)
    candidate = Bigram(broken)
    p = perplexity(score(candidate, windows))
    assert (p.excluded, p.tokens) == (hit, windows.scored - hit)
    assert math.isfinite(p.value)
    s = summarize(compare(write_cache(reference, windows, "k", tmp_path), candidate, windows))
    assert s is not None
    assert (s.excluded, s.tokens) == (hit, windows.scored - hit)
    assert s.kl_mean == pytest.approx(0, abs=1e-7)
    backwards = summarize(compare(write_cache(candidate, windows, "b", tmp_path), reference, windows))
    assert backwards is not None
    assert backwards.excluded == hit


@pytest.mark.parametrize("noise", [1e-6, 0.1, 5.0])
@pytest.mark.parametrize("offset", [0.0, 20.0])
def test_divergence_and_normalizer_against_float64(noise: float, offset: float) -> None:
    """What float32 cannot hold is q - r: at 20 its rounding is 1e-6 a token, which is second order in the
    divergence (5e-12 at most) and first in the normalizer."""
    generator = torch.Generator().manual_seed(1)
    reference = torch.log_softmax(4 * torch.randn(40, 3000, generator=generator), 1)
    candidate = reference + offset + noise * torch.randn(40, 3000, generator=generator)
    kl, lse = kl_rows(reference, candidate, reference.argmax(1))
    wide_r, wide_q = reference.double(), candidate.double()
    log_p, log_q = torch.log_softmax(wide_r, 1), torch.log_softmax(wide_q, 1)
    torch.testing.assert_close(
        kl, (log_p.exp() * (log_p - log_q)).sum(1), rtol=2e-5, atol=5e-12 if offset else 1e-13
    )
    torch.testing.assert_close(lse, torch.logsumexp(wide_q, 1), rtol=0, atol=3e-6 if offset else 1e-6)


def test_a_hopeless_candidate_overflows_nothing() -> None:
    reference = as_tensor(np.array([[0.0, -5.0, -500.0]], np.float32))
    candidate = as_tensor(np.array([[-400.0, 0.0, 300.0]], np.float32))
    kl, lse = kl_rows(reference, candidate, torch.tensor([0]))
    assert float(lse[0]) == 300
    lp, lq = naive_log_probs(np.array([0.0, -5.0, -500.0])), naive_log_probs(np.array([-400.0, 0.0, 300.0]))
    assert float(kl[0]) == pytest.approx(float((np.exp(lp) * (lp - lq)).sum()), rel=1e-6)


def test_another_vocabulary_is_refused() -> None:
    reference = Bigram(random_table(50))
    windows = windows_of(reference)
    with pytest.raises(BadInput, match="logits for 60 tokens, the reference for 50"):
        compare(SideBySideReference(reference), Bigram(random_table(60)), windows)


def test_llamacpp_base_is_clipped_at_16_nats() -> None:
    logits = np.array([[0.0, -3.0, -40.0]], np.float32)
    kept = emulate_llamacpp_base(logits)
    exact = naive_log_probs(logits[0])
    assert kept[0, :2] == pytest.approx(exact[:2], abs=2e-4)
    assert kept[0, 2] == pytest.approx(exact[0] - 16, abs=1e-4)
