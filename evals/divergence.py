"""How far a candidate's next-token distribution lies from the reference's, token by token.

Tokens whose logits are not finite in either model are left out of every figure and counted.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from evals.kernels import as_tensor, blocks, kl_rows
from evals.reference import CachedReference, ReferenceRows
from evals.windows import Windows
from quantize.errors import BadInput
from quantize.metrics import KL_MEAN, KL_PERCENTILES, TOP1_AGREEMENT
from quantize.progress import Advance
from quantize.runtimes.base import Runtime

CONFIDENCE_EDGES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class Divergences:
    """Per scored token, float64 except ``same_top`` (bool): NaN where either model's logits were not
    finite."""

    kl: np.ndarray
    candidate: np.ndarray  # ln q(true token)
    reference: np.ndarray  # ln p(true token)
    same_top: np.ndarray
    confidence: np.ndarray  # the reference's largest probability
    offsets: np.ndarray

    @property
    def finite(self) -> np.ndarray:
        return np.isfinite(self.kl) & np.isfinite(self.candidate) & np.isfinite(self.reference)

    @property
    def excluded(self) -> int:
        return int((~self.finite).sum())

    @property
    def delta_p(self) -> np.ndarray:
        """Change in the probability of the true token."""
        return np.exp(self.candidate) - np.exp(self.reference)

    def only(self, indices: np.ndarray) -> "Divergences":
        """Of some of the windows, in the order given."""
        counts = np.diff(self.offsets)[indices]
        begin = self.offsets[indices]
        where = np.concatenate([np.arange(b, b + n) for b, n in zip(begin, counts, strict=True)])
        return Divergences(
            self.kl[where],
            self.candidate[where],
            self.reference[where],
            self.same_top[where],
            self.confidence[where],
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        )


@dataclass(frozen=True)
class Summary:
    """Everything that llama-perplexity --kl-divergence prints. Standard errors use its formulas: tokens count
    as independent."""

    tokens: int
    excluded: int
    kl_mean: float
    kl_mean_stderr: float
    kl_percentiles: dict[float, float]
    kl_max: float
    kl_min: float
    top1_agreement: float
    top1_agreement_stderr: float
    delta_p_mean: float
    delta_p_mean_stderr: float
    delta_p_rms: float
    delta_p_rms_stderr: float
    ppl: float
    ppl_reference: float
    ppl_ratio: float
    ppl_ratio_stderr: float
    ppl_difference: float
    ppl_difference_stderr: float
    ln_ppl_correlation: float
    buckets: tuple[dict[str, float], ...]


def compare(
    reference: ReferenceRows,
    runtime: Runtime,
    windows: Windows,
    advance: Advance | None = None,
    name: str = "the candidate",
) -> Divergences:
    """One pass of the candidate over the windows. Errors: BadInput where the vocabularies differ in size."""
    import torch

    if runtime.vocabulary != reference.vocabulary:
        raise BadInput(
            f"{name}: has logits for {runtime.vocabulary} tokens, the reference for "
            f"{reference.vocabulary}: they are different models; give the reference that it was made from"
        )
    total = windows.scored
    kl, candidate, truth, confidence = (np.full(total, np.nan) for _ in range(4))
    same = np.zeros(total, bool)

    def consume(where: slice, logits: np.ndarray, targets: np.ndarray) -> None:
        for part in blocks(*logits.shape):
            place = slice(where.start + part.start, where.start + part.stop)
            q = as_tensor(logits[part])
            known = reference.rows(place)
            r = known.logits
            kl_part, lse_q = kl_rows(r, q, torch.from_numpy(known.top.astype(np.int64)))
            index = torch.from_numpy(np.ascontiguousarray(targets[part]))[:, None]
            kl[place] = kl_part.numpy()
            candidate[place] = (q.gather(1, index)[:, 0].double() - lse_q).numpy()
            truth[place] = known.true_log_probs
            confidence[place] = known.confidence
            same[place] = q.argmax(1).numpy() == known.top

    reference.drive(runtime, windows, consume, advance)
    for values in (kl, candidate, truth):
        values[~np.isfinite(values)] = np.nan
    return Divergences(kl, candidate, truth, same, confidence, windows.offsets)


def divergences_from_itself(cached: CachedReference, windows: Windows) -> Divergences | None:
    """Of the reference from what its cache kept of it; None where the cache was not checked when it was
    written."""
    if cached.self_kl is None:
        return None
    truth = cached.true_log_probs
    return Divergences(
        cached.self_kl, truth, truth, np.ones(len(truth), bool), cached.confidence, windows.offsets
    )


def summarize(d: Divergences) -> Summary | None:
    """Figures over the tokens that are finite in both; None where there is none.

    Source of every formula and of the percentiles' linear interpolation: llama.cpp
    tools/perplexity/perplexity.cpp.
    """
    keep = d.finite
    n = int(keep.sum())
    if not n:
        return None
    kl, a, b = d.kl[keep], -d.candidate[keep], -d.reference[keep]
    same, confidence, dp = d.same_top[keep], d.confidence[keep], d.delta_p[keep]

    def stderr(x: np.ndarray) -> float:
        return (
            math.sqrt(max(float((x**2).mean()) - float(x.mean()) ** 2, 0.0) / (n - 1)) if n > 1 else math.nan
        )

    mean_a, mean_b = float(a.mean()), float(b.mean())
    se_a, se_b = stderr(a), stderr(b)
    covariance = (float((a * b).mean()) - mean_a * mean_b) / (n - 1) if n > 1 else math.nan
    ppl, ppl_ref = math.exp(min(mean_a, 700.0)), math.exp(min(mean_b, 700.0))
    ratio = math.exp(min(mean_a - mean_b, 700.0))
    rms = math.sqrt(float((dp**2).mean()))
    top = float(same.mean())
    return Summary(
        tokens=n,
        excluded=d.excluded,
        kl_mean=float(kl.mean()),
        kl_mean_stderr=stderr(kl),
        kl_percentiles={percent: float(np.percentile(kl, percent)) for percent in KL_PERCENTILES},
        kl_max=float(kl.max()),
        kl_min=float(kl.min()),
        top1_agreement=top,
        top1_agreement_stderr=math.sqrt(top * (1 - top) / (n - 1)) if n > 1 else math.nan,
        delta_p_mean=float(dp.mean()),
        delta_p_mean_stderr=stderr(dp),
        delta_p_rms=rms,
        delta_p_rms_stderr=0.5 / rms * stderr(dp**2) if rms else 0.0,
        ppl=ppl,
        ppl_reference=ppl_ref,
        ppl_ratio=ratio,
        ppl_ratio_stderr=ratio * math.sqrt(max(se_a**2 + se_b**2 - 2 * covariance, 0.0)),
        ppl_difference=ppl - ppl_ref,
        ppl_difference_stderr=math.sqrt(
            max((ppl * se_a) ** 2 + (ppl_ref * se_b) ** 2 - 2 * ppl * ppl_ref * covariance, 0.0)
        ),
        ln_ppl_correlation=covariance / (se_a * se_b) if se_a * se_b else 1.0,
        buckets=tuple(_buckets(kl, same, confidence)),
    )


def _buckets(kl: np.ndarray, same: np.ndarray, confidence: np.ndarray) -> list[dict[str, float]]:
    """By the reference's largest probability: the last bucket includes 1."""
    out = []
    for low, high in itertools.pairwise(CONFIDENCE_EDGES):
        inside = (confidence >= low) & ((confidence < high) if high < 1 else (confidence <= 1 + 1e-6))
        count = int(inside.sum())
        row = {"from": low, "to": high, "tokens": count}
        if count:
            row |= {KL_MEAN: float(kl[inside].mean()), TOP1_AGREEMENT: float(same[inside].mean())}
        out.append(row)
    return out
