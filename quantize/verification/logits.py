"""Logits of an artifact's runtime against those of the source architecture on weights read by a second
reader."""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from quantize.artifact.artifact import NOT_COMPARED, Check
from quantize.calibration.layers import round_like_runtime, streamed_model
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.hf.conversions import parameter_parts
from quantize.hf.names import empty_model, find_layers
from quantize.hf.routers import Inputs, disturb
from quantize.methods.base import Work
from quantize.recipe import RunOptions
from quantize.runtimes.base import Consume
from quantize.runtimes.transformers import TransformersRuntime

if TYPE_CHECKING:
    import torch

#: name of a tensor in the checkpoint -> float32 array
Read = Callable[[str], np.ndarray]
#: its own hooks on the model that is about to run
Prepare = Callable[["torch.nn.Module"], None]

WINDOWS, WINDOW_TOKENS = 2, 64
#: The text for both sides: prose and code, so that a tokenizer for either finds its words.
TEXT = (
    "The river had risen in the night, and by morning the lower fields were under water. Two men stood on "
    "the bridge and argued "
    'about the price of hay. "It will be worth double by Easter," said the older one, and he was right, '
    "though not for the "
    "reason he gave. In 1894, 37 of the 112 farms along the valley changed hands.\n\n"
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    return total "
    "/ len(values)\n\n"
    "Water boils at 100 degrees Celsius at sea level, and at about 71 on the top of Mount Everest. Why? "
    "Because the air is "
    "thinner there, its pressure is lower, and a bubble of steam has less to push against. The "
    "same holds in a kitchen in Mexico City.\n"
)

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


def compare_logits(
    work: Work[Any],
    stage: Path,
    read: Read,
    extra: frozenset[str],
    runtime: Served,
    rows: np.ndarray,
    again: Callable[[], Served] | None = None,
) -> tuple[list[Check], str]:
    """(checks, level reached): the runtime against the weights that ``read`` gives by source name, and those
    against the source.

    ``again`` opens the runtime with kernels that compute in float32.
    ``extra``: parameters that ``read`` knows although the source does not hold them. The level is ``tensors``
    where transformers cannot run the source's architecture tensor by tensor; that the runtime runs at all is
    checked then.
    """
    checkpoint, table = work.checkpoint, work.format.gelu_table
    seen, seen_rounded = Inputs(), Inputs()
    try:
        try:
            exact = _run_reference(checkpoint, read, rows, extra, None, False, seen.watch)
        except (BadInput, Unsupported):
            if work.format.hf_folder or work.held.whole is checkpoint:
                raise
            # transformers may have the text model only with all that was left out of the file; what a text
            # never asks comes from the source
            checkpoint, read, seen = work.held.whole, _completed(read, work), Inputs()
            exact = _run_reference(checkpoint, read, rows, extra, None, False, seen.watch)
        rounding = work.format.activation_types(stage)
        reference, known = exact, seen
        if rounding is not None:
            reference = _run_reference(checkpoint, read, rows, extra, rounding, table, seen_rounded.watch)
            known = seen_rounded
    except Unsupported as error:
        kept = Check(name="logits", passed=True, detail=NOT_COMPARED + _reason(error, checkpoint))
        return [kept, *_runs(runtime, rows)], "tensors"
    width = min(exact.shape[-1], runtime.vocabulary)
    served = _Comparison(reference, width)
    try:
        runtime.logits(rows, 0, served.add)
    except StepFailed as error:
        return [Check(name="logits", passed=False, detail=str(error))], "full"
    tolerance = work.format.kl_tolerance
    detail = f"mean KL divergence from the second reader's weights, {rows.size} positions"
    if rounding is not None:
        moved = _Comparison(exact, width)
        for row, logits in enumerate(reference):
            moved.add(row, 0, logits)
        tolerance = max(tolerance, ROUNDING_MARGIN * moved.kl_mean)
        detail += (
            "; the runtime's rounding of activations, done equally "
            f"on both sides, moves this model by {moved.kl_mean:.2g}"
        )
    if served.kl_mean > tolerance and again is not None:
        slow = _Comparison(exact, width)
        try:
            again().logits(rows, 0, slow.add)
        except StepFailed as error:
            return [Check(name="logits", passed=False, detail=str(error))], "full"
        detail += (
            f"; kernels that compute in float32 are {slow.kl_mean:.2g} off ({KL_SLOW_KERNELS:g} allowed)"
        )
        if slow.kl_mean <= KL_SLOW_KERNELS:
            tolerance *= KERNEL_MARGIN
    if served.kl_mean > tolerance and (noise := seen.apart(known)):
        choices = 0.0
        for seed in range(CHOICE_RUNS):
            turned = _Comparison(reference, width)
            disturbed = partial(
                disturb, sizes={name: CHOICE_NOISE * size for name, size in noise.items()}, seed=seed
            )
            _run_streamed(checkpoint, read, rows, extra, turned.add, rounding, table, disturbed)
            choices = max(choices, turned.kl_mean)
        tolerance = max(tolerance, ROUNDING_MARGIN * choices)
        detail += (
            f"; noise of {CHOICE_NOISE:g} times that rounding, "
            f"before its routers only, moves it by {choices:.2g}"
        )
    checks = [
        Check(
            name="logits",
            passed=served.kl_mean <= tolerance,
            value=served.kl_mean,
            tolerance=tolerance,
            detail=detail,
        ),
        Check(
            name="largest difference",
            passed=True,
            value=served.largest,
            detail="of a log-probability above 1e-4, same positions; recorded",
        ),
    ]
    source = _Comparison(exact, width, reverse=True)
    _run_streamed(checkpoint, checkpoint.read_float32, rows, frozenset(), source.add)
    checks.append(
        Check(
            name="distance to source",
            passed=True,
            value=source.kl_mean,
            detail="mean KL divergence of the second reader's weights "
            "from the source's; recorded: what the recipe costs",
        )
    )
    return checks, "full"


def _completed(read: Read, work: Work[Any]) -> Read:
    held = work.checkpoint.tensors

    def of(name: str) -> np.ndarray:
        left_out = name in work.held.whole.tensors and name not in held
        return work.held.whole.read_float32(name) if left_out else read(name)

    return of


def _reason(error: Unsupported, checkpoint: Checkpoint) -> str:
    """Without the advice for those who wanted to quantize it through transformers."""
    return str(error).removeprefix(f"{checkpoint.source}: ").partition("; GGUF recipes")[0]


@lru_cache(maxsize=1)
def why_not_full(checkpoint: Checkpoint) -> str:
    """Why the logits of an artifact of ``checkpoint`` cannot be compared, known from its config and headers;
    nothing where they can. A cache of the last answer: recipes are many."""
    why = ""
    try:
        find_layers(checkpoint)
    except Unsupported:
        try:
            parameter_parts(checkpoint, empty_model(checkpoint))
        except Unsupported as error:
            why = _reason(error, checkpoint)
    return why


def fixed_rows(checkpoint: Checkpoint, length: int) -> np.ndarray:
    """Token ids (WINDOWS, length) of a fixed text, repeated where it is too short."""
    ids = np.asarray(SourceTokenizer.open(checkpoint.folder).encode(TEXT, add_special=False), dtype=np.int64)
    return np.resize(ids, (WINDOWS, length))


class _Comparison:
    """Mean KL divergence between logits kept (rows, positions, vocabulary) and logits pushed in pieces.

    (kept || pushed), or the other way round with ``reverse``. Columns beyond ``width`` (padding that one side
    adds) are left out.
    """

    def __init__(self, kept: np.ndarray, width: int, reverse: bool = False):
        self._kept, self._width, self._reverse = kept, width, reverse
        self._sum, self._count, self.largest = 0.0, 0, 0.0

    def add(self, row: int, first: int, logits: np.ndarray) -> None:
        _demand_finite(logits)
        for begin in range(0, len(logits), 16):  # double precision of 262k columns takes 2 MB a position
            part = logits[begin : begin + 16, : self._width]
            kept = self._kept[row, first + begin : first + begin + len(part), : self._width]
            p, q = _log_softmax(kept), _log_softmax(part)
            if self._reverse:
                p, q = q, p
            self._sum += float((np.exp(p) * (p - q)).sum())
            self._count += len(part)
            likely = p > np.log(1e-4)
            self.largest = max(self.largest, float(np.abs(p - q)[likely].max(initial=0)))

    @property
    def kl_mean(self) -> float:
        """Rounding can make a sum of nothing slightly negative."""
        return max(0.0, self._sum / max(1, self._count))


def _demand_finite(logits: np.ndarray) -> None:
    """Errors: StepFailed. Evaluation counts such positions and goes on; a conversion with them has failed."""
    if not np.isfinite(logits).all():
        raise StepFailed(
            "the model's logits are NaN or Inf: the arithmetic "
            "overflows, or the weights are damaged; try --dtype float32"
        )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    return x


def _run_reference(
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
        _demand_finite(logits)
        kept.append(logits.copy())

    _run_streamed(checkpoint, read, rows, extra, keep, activations, gelu_table, prepare)
    return np.concatenate(kept).reshape(*rows.shape, -1)


def _run_streamed(
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


def _runs(runtime: Served, rows: np.ndarray) -> list[Check]:
    """That the runtime computes at all, where there is nothing to compare with."""
    finite = True

    def look(row: int, first: int, logits: np.ndarray) -> None:
        nonlocal finite
        finite = finite and bool(np.isfinite(logits).all())

    runtime.logits(rows, 0, look)
    return [Check(name="runs", passed=finite, detail="" if finite else "its logits are not finite")]
