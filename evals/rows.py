"""Measured numbers -> EvalResult rows with their uncertainty."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evals import statistics
from evals.divergence import Divergences, summarize
from evals.perplexity import TokenScores, chunk_sums, document_perplexities, perplexity
from evals.protocols import PROTOCOL_VERSION
from evals.windows import Windows
from quantize.metrics import (
    BITS_PER_BYTE,
    BYTE_PERPLEXITY,
    DELTA_P_MEAN,
    DELTA_P_RMS,
    KL_MAX,
    KL_MEAN,
    KL_PERCENTILES,
    PERPLEXITY,
    PPL_DIFFERENCE,
    PPL_RATIO,
    TOP1_AGREEMENT,
    WORD_PERPLEXITY,
    kl_percentile,
)
from quantize.results import EvalResult


@dataclass(frozen=True)
class Heading:
    """What the rows of one artifact share."""

    artifact: str
    digest: str
    backend: str
    environment: dict[str, Any]
    role: str = ""


def number(value: float | None) -> float | None:
    """JSON has neither NaN nor infinity."""
    return None if value is None or not math.isfinite(value) else float(value)


def interval(bounds: tuple[float, float]) -> tuple[float, float] | None:
    return (float(bounds[0]), float(bounds[1])) if all(math.isfinite(b) for b in bounds) else None


def base_row(heading: Heading, windows: Windows) -> EvalResult:
    chunks = len(windows.windows)
    detail: dict[str, Any] = {"chunks": chunks, "text_tokens": windows.text_tokens}
    if chunks < statistics.FEW_CHUNKS:
        detail["few_chunks"] = (
            f"{chunks} chunks, fewer than {statistics.FEW_CHUNKS}: the interval may be too narrow"
        )
    if windows.remarks:
        detail["remarks"] = list(windows.remarks)
    return EvalResult(
        artifact=heading.artifact,
        metric="",
        protocol=windows.protocol.name,
        value=None,
        role=heading.role,
        ids=windows.ids,
        backend=heading.backend,
        artifact_digest=heading.digest,
        protocol_version=PROTOCOL_VERSION,
        protocol_parameters=windows.protocol.parameters | {"bos": windows.bos},
        environment=heading.environment
        | {"text_sha256": windows.text_sha256, "ids_sha256": windows.ids_sha256},
        detail=detail,
    )


def perplexity_rows(scores: TokenScores, windows: Windows, heading: Heading) -> list[EvalResult]:
    """perplexity and bits_per_byte, and where the protocol has whole documents, word_perplexity and
    byte_perplexity."""
    base = base_row(heading, windows)
    p = perplexity(scores)
    means = tuple((p.chunk_nll / np.maximum(p.chunk_tokens, 1)).tolist())
    bounds = statistics.perplexity_interval(p.chunk_nll, p.chunk_tokens)
    detail = base.detail | {"nll_per_token": number(p.nll)}
    if len(set(p.chunk_tokens.tolist())) > 1:
        detail["chunk_tokens"] = p.chunk_tokens.tolist()
    rows = [
        replace(
            base,
            metric=PERPLEXITY,
            value=number(p.value),
            stderr=number(p.stderr),
            interval=interval(bounds),
            n=p.tokens,
            excluded=p.excluded,
            samples=means,
            detail=detail,
        )
    ]
    documents = document_perplexities(scores, windows)
    for metric in (WORD_PERPLEXITY, BYTE_PERPLEXITY):
        if metric in documents:
            rows.append(
                replace(base, metric=metric, value=number(documents[metric]), n=p.tokens, excluded=p.excluded)
            )
    if BITS_PER_BYTE in documents:
        how = "bytes of the original documents, all tokens scored"
        value, per_nat = documents[BITS_PER_BYTE], documents[BITS_PER_BYTE] / p.nll if p.nll else math.nan
    else:
        how = "mean over the scored tokens times the tokens per byte of the whole text"
        per_nat = windows.whole_tokens / windows.text_bytes / math.log(2) if windows.text_bytes else math.nan
        value = p.nll * per_nat
    low, high = (math.log(b) * per_nat if b > 0 else math.nan for b in bounds)
    if documents or windows.protocol.family != "lmeval-wikitext":
        rows.append(
            replace(
                base,
                metric=BITS_PER_BYTE,
                value=number(value),
                interval=interval((low, high)),
                n=p.tokens,
                excluded=p.excluded,
                unit="bits/byte",
                detail=base.detail | {"how": how},
            )
        )
    return rows


def unavailable_row(reason: str, windows: Windows, heading: Heading) -> EvalResult:
    """In place of divergence, where it cannot be measured."""
    base = base_row(heading, windows)
    return replace(
        base,
        metric=KL_MEAN,
        detail=base.detail | {"reason": reason, "remarks": [f"{heading.artifact}: {reason}"]},
    )


def divergence_rows(d: Divergences, windows: Windows, heading: Heading) -> list[EvalResult]:
    """kl_mean, kl_median, kl_p90 ... kl_max, top1_agreement, ppl_ratio, ppl_difference, delta_p_mean,
    delta_p_rms."""
    base = base_row(heading, windows)
    s = summarize(d)
    if s is None:
        detail = base.detail | {"reason": "no token's logits were finite in both models"}
        return [replace(base, metric=KL_MEAN, excluded=d.excluded, detail=detail)]
    keep = d.finite
    offsets = d.offsets

    def sums(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return chunk_sums(np.where(keep, values, np.nan), offsets)

    def row(
        metric: str, value: float, stderr: float | None, bounds: tuple[float, float] | None, **more: Any
    ) -> EvalResult:
        return replace(
            base,
            metric=metric,
            value=number(value),
            stderr=number(stderr),
            interval=interval(bounds) if bounds else None,
            n=s.tokens,
            excluded=s.excluded,
            **more,
        )

    def means(values: np.ndarray, counts: np.ndarray) -> tuple[float, ...]:
        return tuple((values / np.maximum(counts, 1)).tolist())

    kl, counts = sums(d.kl)
    same, _ = sums(d.same_top.astype(float))
    nll, _ = sums(-d.candidate)
    nll_reference, _ = sums(-d.reference)
    dp, _ = sums(d.delta_p)
    dp2, _ = sums(d.delta_p**2)
    difference = statistics.paired_mean_difference(nll, nll_reference, counts)
    percentiles = statistics.percentile_interval(np.where(keep, d.kl, np.nan), offsets, KL_PERCENTILES)
    detail = base.detail | {
        "buckets": list(s.buckets),
        "kl_min": s.kl_min,
        "ln_ppl_correlation": s.ln_ppl_correlation,
    }
    rows = [
        row(
            KL_MEAN,
            s.kl_mean,
            s.kl_mean_stderr,
            statistics.mean_interval(kl, counts),
            unit="nats",
            detail=detail,
        )
    ]
    rows[0] = replace(rows[0], samples=means(kl, counts))
    for percent, bounds in zip(KL_PERCENTILES, percentiles, strict=True):
        rows.append(row(kl_percentile(percent), s.kl_percentiles[percent], None, bounds, unit="nats"))
    rows.append(row(KL_MAX, s.kl_max, None, None, unit="nats"))
    top = row(
        TOP1_AGREEMENT, s.top1_agreement, s.top1_agreement_stderr, statistics.mean_interval(same, counts)
    )
    rows.append(replace(top, samples=means(same, counts)))
    ratio_bounds = (math.exp(difference.interval[0]), math.exp(difference.interval[1]))
    paired = {
        "reference_perplexity": s.ppl_reference,
        "p_value": number(difference.p_value),
        "ln_ratio": difference.value,
    }
    rows.append(row(PPL_RATIO, s.ppl_ratio, s.ppl_ratio_stderr, ratio_bounds, detail=base.detail | paired))

    def ppl_gap(totals: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(totals[:, 0] / totals[:, 2]) - np.exp(totals[:, 1] / totals[:, 2]))

    gap = statistics.block_bootstrap(np.stack([nll, nll_reference, counts], 1), ppl_gap)
    rows.append(
        row(PPL_DIFFERENCE, s.ppl_difference, s.ppl_difference_stderr, gap, detail=base.detail | paired)
    )
    rows.append(
        row(DELTA_P_MEAN, s.delta_p_mean, s.delta_p_mean_stderr, statistics.mean_interval(dp, counts))
    )

    def root(totals: np.ndarray) -> np.ndarray:
        return np.asarray(np.sqrt(np.maximum(totals[:, 0], 0) / totals[:, 1]))

    rms = statistics.block_bootstrap(np.stack([dp2, counts], 1), root)
    rows.append(row(DELTA_P_RMS, s.delta_p_rms, s.delta_p_rms_stderr, rms))
    return rows
