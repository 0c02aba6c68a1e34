"""Logits of the second reader's weights, computed by transformers' own class of the source's architecture in
float32, and what of them another program's may differ by."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from quantize.calibration.layers import round_like_runtime, streamed_model
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import StepFailed
from quantize.hf.routers import Inputs, disturb
from quantize.recipe import RunOptions
from quantize.runtimes.base import Consume
from quantize.runtimes.transformers import TransformersRuntime

if TYPE_CHECKING:
    import torch

#: name of a tensor in the checkpoint -> float32 array
Read = Callable[[str], np.ndarray]
#: its own hooks on the model that is about to run
Prepare = Callable[["torch.nn.Module"], None]

# Two models that round activations alike still round different values once the order of additions differs,
# and a model with outliers (Gemma 3 270M: 0.03 nats) amplifies each flip: what rounding moves it by, times
# this, is the least that is asked.
ROUNDING_MARGIN = 4.0
# A mixture of experts may choose another expert where two are as good as one another: one such choice moves
# the mean by more than all else (2e-3 to 3e-3 seen). So where the runtime is farther off than the above, the
# reference runs again with noise before its routers, this times what rounding was seen to do to their inputs
# there (rounding inside of stacked experts is not done alike): what that moves, times the margin, is what
# another choice may.
CHOICE_NOISE, CHOICE_RUNS = 4.0, 3
# Fast kernels round more than is simulated (scales too, and sums in another order). Where that moves a model
# beyond the above, kernels that compute in float32 are asked, which must be as near as this (nats; 4e-8 seen,
# 3e-6 on Gemma 3 270M); the fast ones may then be this many times farther off: one that is wrong, not coarse,
# is whole nats away.
KL_SLOW_KERNELS, KERNEL_MARGIN = 1e-5, 10.0


class Served(Protocol):
    """What is asked of a runtime, here or in a separate process."""

    vocabulary: int

    def logits(self, rows: np.ndarray, first: int, consume: Consume) -> None: ...


@dataclass(frozen=True)
class Judged:
    """``kl``: mean divergence (reference || runtime) in nats, at most ``tolerance``. ``largest``: difference
    of a log-probability above 1e-4; ``top1``: part of the positions whose likeliest token is the same.
    ``detail``: how it was computed."""

    kl: float
    tolerance: float
    largest: float
    top1: float
    detail: str

    @property
    def passed(self) -> bool:
        return self.kl <= self.tolerance


class Reference:
    """Logits of ``rows`` (n, length) on the weights that ``read`` gives by ``checkpoint``'s names; ``extra``
    names parameters that ``read`` knows beside those. ``gelu_table``: as ``round_like_runtime``.

    Errors: Unsupported where transformers cannot run the architecture tensor by tensor; BadInput where
    weights are missing; StepFailed where they are not finite.
    """

    def __init__(
        self, checkpoint: Checkpoint, read: Read, rows: np.ndarray, extra: frozenset[str], gelu_table: bool
    ):
        self._checkpoint, self._read, self._extra, self._table = checkpoint, read, extra, gelu_table
        self.rows = rows
        self._seen = Inputs()
        self.exact = run_reference(checkpoint, read, rows, extra, None, False, self._seen.watch)
        self._rounded: dict[tuple[tuple[str, str], ...], tuple[np.ndarray, Inputs]] = {}

    def rounded(self, kinds: dict[str, str] | None) -> tuple[np.ndarray, Inputs]:
        """The same where activations are rounded as ``kinds`` says (source name -> how)."""
        if kinds is None:
            return self.exact, self._seen
        key = tuple(sorted(kinds.items()))
        if key not in self._rounded:
            seen = Inputs()
            logits = run_reference(
                self._checkpoint, self._read, self.rows, self._extra, kinds, self._table, seen.watch
            )
            self._rounded[key] = logits, seen
        return self._rounded[key]

    def of(self, rows: np.ndarray, kinds: dict[str, str] | None) -> np.ndarray:
        """Logits of other rows."""
        return run_reference(
            self._checkpoint, self._read, rows, self._extra, kinds, self._table, lambda model: None
        )

    def judge(
        self,
        runtime: Served,
        kinds: dict[str, str] | None,
        tolerance: float,
        again: Callable[[], Served] | None = None,
    ) -> Judged:
        """``kinds``: how the runtime rounds activations; ``tolerance``: what else its logits may differ by,
        which is raised by what rounding moves this model. ``again`` opens the runtime with kernels that
        compute in float32.

        Errors: StepFailed where the runtime fails, or its logits are not finite.
        """
        rows = self.rows
        reference, known = self.rounded(kinds)
        width = min(self.exact.shape[-1], runtime.vocabulary)
        served = Comparison(reference, width)
        runtime.logits(rows, 0, served.add)
        detail = f"mean KL divergence from the second reader's weights, {rows.size} positions"
        if kinds is not None:
            moved = Comparison(self.exact, width)
            for row, logits in enumerate(reference):
                moved.add(row, 0, logits)
            tolerance = max(tolerance, ROUNDING_MARGIN * moved.kl_mean)
            detail += (
                "; the runtime's rounding of activations, done equally "
                f"on both sides, moves this model by {moved.kl_mean:.2g}"
            )
        if served.kl_mean > tolerance and again is not None:
            slow = Comparison(self.exact, width)
            again().logits(rows, 0, slow.add)
            detail += (
                f"; kernels that compute in float32 are {slow.kl_mean:.2g} off ({KL_SLOW_KERNELS:g} allowed)"
            )
            if slow.kl_mean <= KL_SLOW_KERNELS:
                tolerance *= KERNEL_MARGIN
        if served.kl_mean > tolerance and (noise := self._seen.apart(known)):
            choices = 0.0
            for seed in range(CHOICE_RUNS):
                turned = Comparison(reference, width)
                disturbed = partial(
                    disturb, sizes={name: CHOICE_NOISE * size for name, size in noise.items()}, seed=seed
                )
                run_streamed(
                    self._checkpoint, self._read, rows, self._extra, turned.add, kinds, self._table, disturbed
                )
                choices = max(choices, turned.kl_mean)
            tolerance = max(tolerance, ROUNDING_MARGIN * choices)
            detail += (
                f"; noise of {CHOICE_NOISE:g} times that rounding, "
                f"before its routers only, moves it by {choices:.2g}"
            )
        return Judged(served.kl_mean, tolerance, served.largest, served.top1, detail)


class Comparison:
    """Mean KL divergence between logits kept (rows, positions, vocabulary) and logits pushed in pieces.

    (kept || pushed), or the other way round with ``reverse``. Columns beyond ``width`` (padding that one side
    adds) are left out.
    """

    def __init__(self, kept: np.ndarray, width: int, reverse: bool = False):
        self._kept, self._width, self._reverse = kept, width, reverse
        self._sum, self._count, self._same, self.largest = 0.0, 0, 0, 0.0

    def add(self, row: int, first: int, logits: np.ndarray) -> None:
        demand_finite(logits)
        for begin in range(0, len(logits), 16):  # double precision of 262k columns takes 2 MB a position
            part = logits[begin : begin + 16, : self._width]
            kept = self._kept[row, first + begin : first + begin + len(part), : self._width]
            p, q = log_softmax(kept), log_softmax(part)
            if self._reverse:
                p, q = q, p
            self._sum += float((np.exp(p) * (p - q)).sum())
            self._count += len(part)
            self._same += int((p.argmax(-1) == q.argmax(-1)).sum())
            likely = p > np.log(1e-4)
            self.largest = max(self.largest, float(np.abs(p - q)[likely].max(initial=0)))

    @property
    def top1(self) -> float:
        return self._same / max(1, self._count)

    @property
    def kl_mean(self) -> float:
        """Rounding can make a sum of nothing slightly negative."""
        return max(0.0, self._sum / max(1, self._count))


def demand_finite(logits: np.ndarray) -> None:
    """Errors: StepFailed. Evaluation counts such positions and goes on; a conversion with them has failed."""
    if not np.isfinite(logits).all():
        raise StepFailed(
            "the model's logits are NaN or Inf: the arithmetic "
            "overflows, or the weights are damaged; try --dtype float32"
        )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    return x


def run_reference(
    checkpoint: Checkpoint,
    read: Read,
    rows: np.ndarray,
    extra: frozenset[str],
    activations: dict[str, str] | None,
    gelu_table: bool,
    prepare: Prepare,
) -> np.ndarray:
    """All logits (rows, positions, vocabulary): a window of 64 positions and 262k columns is 67 MB."""
    kept: list[np.ndarray] = []

    def keep(row: int, first: int, logits: np.ndarray) -> None:
        demand_finite(logits)
        kept.append(logits.copy())

    run_streamed(checkpoint, read, rows, extra, keep, activations, gelu_table, prepare)
    return np.concatenate(kept).reshape(*rows.shape, -1)


def run_streamed(
    checkpoint: Checkpoint,
    read: Read,
    rows: np.ndarray,
    extra: frozenset[str],
    consume: Consume,
    activations: dict[str, str] | None = None,
    gelu_table: bool = False,
    prepare: Prepare | None = None,
) -> None:
    model = streamed_model(checkpoint, read, extra)
    if activations is not None:
        round_like_runtime(model, checkpoint, activations, gelu_table)
    if prepare is not None:
        prepare(model)
    with TransformersRuntime(
        checkpoint.folder, RunOptions(device="cpu", dtype="float32"), model=model
    ) as runtime:
        runtime.logits(rows, 0, consume)
