"""Arithmetic on rows of logits, in blocks that stay small whatever the vocabulary.

A token's log-probability is taken from the float32 logits in float64 throughout; beside a reference it
follows from the divergence's own terms, exact to what float32 holds of the difference.

With r and q the logits of reference and candidate and p the reference's probabilities, the divergence is
taken from differences q - r rather than from two log-softmaxes, whose rounding (about 1e-7) would drown
nearly equal models. With c = q - r - s, for any s near E_p[q - r], KL(p || q) = ln(1 + E_p[expm1(c) - c] +
E_p[c]) - E_p[c], terms that are zero where the two agree; and lse q = lse r + s + ln E_p[exp c], so that q
needs no exponentials of its own. Rows where a candidate gives a token vastly more than the reference does are
taken in float64 as E_p[r - q] - (lse r - lse q).
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

# of (rows, vocabulary) worked on at once: 2 MB in float32, so that a dozen passes stay in the cache
BLOCK_ELEMENTS = 500_000
LARGEST_EXPONENT = 60.0  # exp of more than 88 overflows float32


def blocks(rows: int, vocabulary: int) -> list[slice]:
    """Row ranges of at most ``BLOCK_ELEMENTS`` elements."""
    step = max(1, BLOCK_ELEMENTS // max(1, vocabulary))
    return [slice(i, min(i + step, rows)) for i in range(0, rows, step)]


def as_tensor(logits: np.ndarray) -> "torch.Tensor":
    import warnings

    import torch

    with warnings.catch_warnings():  # a read-only view of another library's memory: it is only read here
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(np.ascontiguousarray(logits, np.float32))


def target_log_probs(
    logits: np.ndarray, targets: np.ndarray, each: Callable[..., Iterable[Any]] = map
) -> np.ndarray:
    """float32 logits (n, v), int64 targets (n,) -> float64 (n,) ln p(target); NaN where a row holds NaN or
    +inf.

    ``each``: ``map``, or that of a pool of threads, which numpy lets run at once.
    """

    def one(part: slice) -> np.ndarray:
        x = logits[part]
        with np.errstate(invalid="ignore"):
            top = x.max(1, keepdims=True)
            shifted = np.subtract(x, top, dtype=np.float64)
            chosen = np.take_along_axis(shifted, targets[part, None], 1)[:, 0]
            return np.asarray(chosen - np.log(np.exp(shifted, out=shifted).sum(1)))

    out = np.concatenate([np.empty(0), *each(one, blocks(*logits.shape))])
    out[~np.isfinite(out)] = np.nan
    return out


def add_log_probs(
    length: int,
    wanted: list[tuple[int, list[int]]],
    position: int,
    logits: np.ndarray,
    log_probs: list[np.ndarray],
    greedy: np.ndarray,
) -> None:
    """Set the log-probabilities that ``logits``, from ``position`` on of a row of ``length`` tokens, give the
    tokens of each (request, continuation) in ``wanted``; ``greedy`` is unset where greedy decoding picks
    another."""
    import torch

    begin, end = (
        max(position, length - max(len(tokens) for _, tokens in wanted)),
        min(position + len(logits), length),
    )
    if begin >= end:
        return
    part = logits[begin - position : end - position]
    for block in blocks(*part.shape):
        x = as_tensor(part[block])
        top, best = x.max(1)
        normalizer = top.double() + (x - top[:, None]).exp_().sum(1, dtype=torch.float64).log()
        at = np.arange(begin + block.start, begin + block.stop)
        for index, tokens in wanted:
            # Position length - n + i predicts token i of a continuation of n tokens.
            which = at - (length - len(tokens))
            keep = which >= 0
            if not keep.any():
                continue
            targets = np.asarray(tokens)[which[keep]]
            lines = np.flatnonzero(keep)
            chosen = x[torch.from_numpy(lines), torch.from_numpy(targets)].double()
            log_probs[index][which[keep]] = (chosen - normalizer[torch.from_numpy(lines)]).numpy()
            greedy[index] &= bool((best.numpy()[lines] == targets).all())


def kl_rows(r: "torch.Tensor", q: "torch.Tensor", top: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """float32 logits (n, v) of reference and candidate, int64 (n,) the reference's most probable token ->
    float64 KL (n,) and q's log-normalizers (n,), as exact as float32 holds q - r (two millionths where that
    is 20)."""
    import torch

    def mean(x: torch.Tensor) -> torch.Tensor:  # E_p, whatever rounding did to the sum of p
        return (p * x).sum(1, dtype=torch.float64).div_(total)

    p = torch.softmax(r, 1)
    total = p.sum(1, dtype=torch.float64)
    c = q - r
    about = mean(c)
    shift = about.float()
    c.sub_(shift[:, None])
    left = about - shift.double()  # E_p[c]
    large = c.amax(1) > LARGEST_EXPONENT
    log_mean_exp = torch.log1p(mean(torch.expm1(c).sub_(c)).add_(left))  # ln E_p[exp c]
    kl = log_mean_exp - left
    at = top[:, None]
    lse_r = r.gather(1, at)[:, 0].double() - (p.gather(1, at)[:, 0].double() / total).log()
    lse_q = lse_r + shift.double() + log_mean_exp
    if bool(large.any()):
        rows = large.nonzero()[:, 0]
        wide_r, wide_q = r[rows].double(), q[rows].double()
        lse_q[rows] = torch.logsumexp(wide_q, 1)
        exact = (torch.log_softmax(wide_r, 1).exp() * (wide_r - wide_q)).sum(1)
        kl[rows] = exact - (torch.logsumexp(wide_r, 1) - lse_q[rows])
    return kl, lse_q
