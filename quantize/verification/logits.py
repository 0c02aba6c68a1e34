"""Logits of an artifact's runtime against those of the source architecture on weights read by a second
reader."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from quantize.artifact.artifact import NOT_COMPARED, Check
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.hf.conversions import parameter_parts
from quantize.hf.names import empty_model, find_layers
from quantize.methods.base import Work
from quantize.verification.reference import Comparison, Read, Reference, Served, run_reference, run_streamed

WINDOWS, WINDOW_TOKENS = 2, 64
#: logits of the source that are kept for the next recipe
KEPT_BYTES = 64 << 20
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
    try:
        try:
            reference = Reference(checkpoint, read, rows, extra, table)
        except (BadInput, Unsupported):
            if work.format.hf_folder or work.held.whole is checkpoint:
                raise
            # transformers may have the text model only with all that was left out of the file; what a text
            # never asks comes from the source
            checkpoint, read = work.held.whole, _completed(read, work)
            reference = Reference(checkpoint, read, rows, extra, table)
        rounding = work.format.activation_types(stage)
        reference.rounded(rounding)
    except Unsupported as error:
        kept = Check(name="logits", passed=True, detail=NOT_COMPARED + _reason(error, checkpoint))
        return [kept, *_runs(runtime, rows)], "tensors"
    try:
        found = reference.judge(runtime, rounding, work.format.kl_tolerance, again)
    except StepFailed as error:
        return [Check(name="logits", passed=False, detail=str(error))], "full"
    checks = [
        Check(
            name="logits",
            passed=found.passed,
            value=found.kl,
            tolerance=found.tolerance,
            detail=found.detail,
        ),
        Check(
            name="largest difference",
            passed=True,
            value=found.largest,
            detail="of a log-probability above 1e-4, same positions; recorded",
        ),
    ]
    width = min(reference.exact.shape[-1], runtime.vocabulary)
    source = Comparison(reference.exact, width, reverse=True)
    if reference.exact.nbytes > KEPT_BYTES:
        run_streamed(checkpoint, checkpoint.read_float32, rows, frozenset(), source.add)
    else:
        for row, logits in enumerate(_of_source(checkpoint, rows.tobytes(), rows.shape)):
            source.add(row, 0, logits)
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


@lru_cache(maxsize=1)
def _of_source(checkpoint: Checkpoint, rows: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Logits of the source itself: the same for all recipes that one process makes of it."""
    ids = np.frombuffer(rows, np.int64).reshape(shape).copy()
    return run_reference(
        checkpoint, checkpoint.read_float32, ids, frozenset(), None, False, lambda model: None
    )


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


def _runs(runtime: Served, rows: np.ndarray) -> list[Check]:
    """That the runtime computes at all, where there is nothing to compare with."""
    finite = True

    def look(row: int, first: int, logits: np.ndarray) -> None:
        nonlocal finite
        finite = finite and bool(np.isfinite(logits).all())

    runtime.logits(rows, 0, look)
    return [Check(name="runs", passed=finite, detail="" if finite else "its logits are not finite")]
