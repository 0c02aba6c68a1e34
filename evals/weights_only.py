"""What only a GGUF's weights do: its dequantized tensors in the reference's runtime. llama.cpp on a CPU
rounds activations.

That is a pass of the whole reference model for every GGUF, where the reference itself runs once for all of
them. So by default (``sample``) it is taken on few windows (``Windows.spread``): for four candidates
together, a twentieth of the reference's time. Beside it stands the divergence of the file itself, in its own
runtime, on those very tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evals.divergence import Divergences, compare
from evals.kernels import as_tensor
from evals.reference import ReferenceRows
from evals.room import check_room
from evals.rows import Heading, divergence_rows
from evals.subjects import Typed
from evals.windows import Windows
from quantize.errors import one_line
from quantize.gguf.container.reader import read_gguf
from quantize.gguf.families.plan import dequantize, plan
from quantize.metrics import KL_SAME_TOKENS, KL_WEIGHTS_ONLY
from quantize.recipe import RunOptions
from quantize.results import EvalResult
from quantize.runtimes.transformers import TransformersRuntime, with_weights
from quantize.sources.opening import open_checkpoint


@dataclass(frozen=True)
class Measured:
    """Of one protocol: the windows, what is known of the reference there, and how the artifact diverged in
    its own runtime."""

    windows: Windows
    reference: ReferenceRows
    divergences: Divergences


def chosen_windows(windows: Windows, how_much: str) -> np.ndarray:
    """Ascending indices of the windows to measure on."""
    return np.arange(len(windows.windows)) if how_much == "full" else windows.spread()


def weights_only_rows(
    typed: Typed,
    reference: Typed | None,
    measured: Sequence[Measured],
    how_much: str,
    run: RunOptions,
    heading: Heading,
    say: Callable[[str], None],
) -> list[EvalResult]:
    """``kl_weights_only`` for each protocol of a GGUF file, ours or not, and ``kl_same_tokens``, its
    ``kl_mean`` on those tokens; empty, with the reason said, where they cannot be had."""
    if not measured or reference is None or reference.gguf:
        return []
    try:
        with _dequantized(typed, reference, run) as runtime:
            rows = []
            for each in measured:
                indices = chosen_windows(each.windows, how_much)
                shared = each.windows.only(indices)
                found = compare(each.reference.only(each.windows, indices), runtime, shared, None, typed.name)
                how = {
                    "how": "its dequantized tensors in the reference's runtime",
                    "runtime": runtime.describe(),
                }
                rows.append(_mean(found, each, shared, heading, KL_WEIGHTS_ONLY, how))
                rows.append(_mean(each.divergences.only(indices), each, shared, heading, KL_SAME_TOKENS, {}))
            return rows
    except Exception as error:  # anybody's file in another library: its own rows must not be lost to these
        say(f"{typed.name}: no kl_weights_only: {one_line(error)}")
        return []


def _mean(
    d: Divergences, each: Measured, shared: Windows, heading: Heading, metric: str, more: dict[str, Any]
) -> EvalResult:
    row = divergence_rows(d, shared, heading)[0]
    return replace(row, metric=metric, detail=row.detail | {"of_chunks": len(each.windows.windows)} | more)


def _dequantized(typed: Typed, reference: Typed, run: RunOptions) -> TransformersRuntime:
    """The reference's model with the file's weights, float32 where ``run`` names no dtype. Errors: StepFailed
    where memory does not suffice; BadInput and Unsupported where the file was not made from the reference."""
    assert typed.gguf is not None
    checkpoint = open_checkpoint(str(reference.path), trust_remote_code=run.trust_remote_code)
    check_room(2 * 4 * checkpoint.parameters, run)  # as they are read and in the model
    file, tensors = read_gguf(typed.gguf), plan(checkpoint).tensors
    weights = {name: as_tensor(w) for name, w in dequantize(file, tensors, checkpoint.source)}
    return with_weights(checkpoint.folder, weights, run)
