"""Log-probabilities of a text's own tokens, and the perplexities that protocols make of them.

Logits are used as they come, window by window, so that (all tokens x vocabulary) is never held.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from evals.kernels import target_log_probs
from evals.windows import Windows
from quantize.metrics import BITS_PER_BYTE, BYTE_PERPLEXITY, WORD_PERPLEXITY
from quantize.progress import Advance
from quantize.runtimes.base import Runtime

ROWS_PER_CALL_ELEMENTS = 1 << 16  # tokens handed to the runtime in one call, so that the progress bar moves
WINDOWS_PER_CALL = 64  # of a runtime that scores whole windows


@dataclass(frozen=True)
class TokenScores:
    """``log_probs``: (scored tokens,) float64 of the true tokens, NaN where the model's logits were not
    finite."""

    log_probs: np.ndarray
    offsets: np.ndarray

    @property
    def finite(self) -> np.ndarray:
        return np.isfinite(self.log_probs)

    @property
    def excluded(self) -> int:
        return int((~self.finite).sum())


@dataclass(frozen=True)
class Perplexity:
    """``stderr`` is llama-perplexity's: tokens count as independent. ``chunk_nll``, ``chunk_tokens``: sums a
    window."""

    value: float
    stderr: float
    nll: float  # nats a token
    tokens: int
    excluded: int
    chunk_nll: np.ndarray
    chunk_tokens: np.ndarray


def run_windows(
    runtime: Runtime,
    windows: Windows,
    consume: Callable[[slice, np.ndarray, np.ndarray], None],
    advance: Advance | None = None,
) -> None:
    """Push the logits of every scored position through ``consume(where, logits, targets)``.

    ``where``: range of the flat array of all scored tokens; logits (n, v) float32, valid during the call;
    targets (n,) int64.
    """
    offsets = windows.offsets
    for members, rows, first in windows.groups():
        step = max(1, ROWS_PER_CALL_ELEMENTS // rows.shape[1])
        for begin in range(0, len(members), step):
            part = members[begin : begin + step]

            def take(
                row: int, position: int, logits: np.ndarray, part: np.ndarray = part, first: int = first
            ) -> None:
                index = int(part[row])
                start = int(offsets[index]) + position - first
                targets = windows.windows[index].tokens[position + 1 : position + 1 + len(logits)]
                consume(slice(start, start + len(logits)), logits, targets)
                if advance:
                    advance(len(logits))

            runtime.logits(rows[begin : begin + step], first, take)


def score(
    runtime: Runtime, windows: Windows, advance: Advance | None = None, threads: int = 1
) -> TokenScores:
    """``threads``: of the arithmetic on the logits, while the runtime waits.

    Errors: BadInput where a window exceeds the model's context or an id its vocabulary."""
    out = np.full(windows.scored, np.nan)
    if runtime.by_scores:
        for begin in range(0, len(windows.windows), WINDOWS_PER_CALL):
            part = windows.windows[begin : begin + WINDOWS_PER_CALL]
            scores = runtime.token_scores([w.tokens.tolist() for w in part], [w.first + 1 for w in part])
            found = np.concatenate([log_probs for log_probs, _ in scores])
            out[windows.offsets[begin] : windows.offsets[begin] + len(found)] = found
            if advance:
                advance(len(found))
        out[~np.isfinite(out)] = np.nan
        return TokenScores(out, windows.offsets)

    def consume(where: slice, logits: np.ndarray, targets: np.ndarray) -> None:
        out[where] = target_log_probs(logits, targets, pool.map)

    with ThreadPoolExecutor(threads) as pool:
        run_windows(runtime, windows, consume, advance)
    return TokenScores(out, windows.offsets)


def chunk_sums(values: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts of the finite values of each chunk: float64 (chunks,), int64 (chunks,)."""
    finite = np.isfinite(values)
    running = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    return np.diff(running[offsets]), np.diff(counts[offsets])


def perplexity(scores: TokenScores) -> Perplexity:
    """exp of the mean negative log-probability over the scored tokens. Source of ``stderr``: llama.cpp
    tools/perplexity."""
    nll = -scores.log_probs[scores.finite]
    n = len(nll)
    sums, counts = chunk_sums(-scores.log_probs, scores.offsets)
    if not n:
        return Perplexity(math.nan, math.nan, math.nan, 0, scores.excluded, sums, counts)
    mean = float(nll.mean())
    variance = (float((nll**2).mean()) - mean**2) / (n - 1) if n > 1 else math.nan
    value = math.exp(min(mean, 700.0))
    return Perplexity(value, value * math.sqrt(max(variance, 0.0)), mean, n, scores.excluded, sums, counts)


def document_perplexities(scores: TokenScores, windows: Windows) -> dict[str, float]:
    """lm-eval's wikitext figures: word_perplexity, byte_perplexity, bits_per_byte; empty where there is no
    whole document."""
    if not windows.documents or scores.excluded:
        return {}
    total = float(scores.log_probs.sum())
    words, size = (sum(column) for column in zip(*windows.documents, strict=True))
    return {
        WORD_PERPLEXITY: math.exp(min(-total / words, 700.0)),
        BYTE_PERPLEXITY: math.exp(-total / size),
        BITS_PER_BYTE: -total / size / math.log(2),
    }
