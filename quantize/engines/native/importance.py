"""The importance matrix of a source model over calibration text, computed as calibrated engines run it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantize.calibration.collectors import Moments
from quantize.calibration.importance import Computed, importance_matrix, source_moments, with_first_token
from quantize.calibration.kept_moments import keep_moments, kept_moments
from quantize.calibration.layer_pass import BATCH_TOKENS, batch_rows
from quantize.calibration.windows import Calibration, spread
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.engines.native.budget import Budget
from quantize.engines.native.layers import pass_key
from quantize.engines.native.precision import Arithmetic, arithmetic_of
from quantize.gguf.importance.file import write_imatrix
from quantize.hashes import sha256_file
from quantize.hf.matrices import decoder_linears
from quantize.progress import progress_bar
from quantize.recipe import RunOptions
from quantize.staging import temporary_folder

#: raised whenever the same text gives another matrix
VERSION = 1
#: tokens that AWQ takes where its recipe does not say otherwise: their windows come first
SEARCH_TOKENS = 8192


@dataclass(frozen=True)
class OwnImatrix:
    """``windows`` of ``window_tokens``; ``compute_dtype``: what the model ran in; ``shared_tokens``: that
    another conversion's pass over the model had met, and this one's did not."""

    computed: Computed
    windows: int
    window_tokens: int
    compute_dtype: str
    shared_tokens: int

    def details(self, scratch: Path | None) -> dict[str, Any]:
        """For a manifest; ``sha256``: of the file that `quantwright imatrix` writes of it."""
        with temporary_folder("imatrix", scratch) as folder:
            write_imatrix(folder / "imatrix.gguf", self.computed.matrix)
            sha256 = sha256_file(folder / "imatrix.gguf")
        return {
            "sha256": sha256,
            "entries": len(self.computed.matrix.entries),
            "windows": self.windows,
            "window_tokens": self.window_tokens,
            "compute_dtype": self.compute_dtype,
        }

    @property
    def shared(self) -> tuple[str, ...]:
        """For a manifest."""
        every = self.windows * self.window_tokens
        what = f"sums of squares over {self.shared_tokens:,} of {every:,} calibration tokens"
        return (f"{what}: of an earlier conversion's pass over the model",) if self.shared_tokens else ()


def own_imatrix(
    checkpoint: Checkpoint, calibration: Calibration, dataset: str, run: RunOptions
) -> OwnImatrix:
    """Over the windows of ``calibration``, each beginning with the token that the tokenizer puts before a
    text. ``dataset``: the name of the text, for the file.

    Errors: BadInput where ``run`` allows too little memory; see ``compute_imatrix``.
    """
    ids, arithmetic = with_first_token(checkpoint, calibration.ids), arithmetic_of(run, checkpoint)
    first, rest = _in_order(ids)
    whole = moments_key(checkpoint, np.concatenate([first, rest]), run, arithmetic)
    moments, shared = kept_moments(whole), ids.size
    if moments is None:
        known = kept_moments(moments_key(checkpoint, first, run, arithmetic)) if len(first) else None
        shared = first.size if known else 0
        rows = rest if known else np.concatenate([first, rest])
        moments = _moments(checkpoint, rows, known, arithmetic, run)
        keep_moments(whole, moments)
    computed = importance_matrix(checkpoint, moments, dataset, ids.shape)
    return OwnImatrix(computed, len(ids), ids.shape[1], arithmetic.name, shared)


def moments_key(
    checkpoint: Checkpoint, rows: np.ndarray, run: RunOptions, arithmetic: Arithmetic
) -> dict[str, Any]:
    """Of the sums of squares that a pass over ``rows``, in this order, gives."""
    return {"moments": VERSION, **pass_key(checkpoint, rows, run, arithmetic)}


def _in_order(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The windows that AWQ takes, and the others, so that sums over the former are where AWQ's pass left
    them; none and all where these are not whole batches."""
    chosen = spread(len(ids), max(1, SEARCH_TOKENS // ids.shape[1]))
    if len(chosen) % batch_rows(ids.shape[1]) and len(chosen) < len(ids):
        chosen = chosen[:0]
    return ids[chosen], np.delete(ids, chosen, axis=0)


def _moments(
    checkpoint: Checkpoint, rows: np.ndarray, known: Moments | None, arithmetic: Arithmetic, run: RunOptions
) -> Moments:
    layers = decoder_linears(checkpoint).layers
    budget = Budget(checkpoint, layers, run, BATCH_TOKENS, hessians=False)
    title = f"{checkpoint.name}: importances"
    with (
        arithmetic.used(run.threads),
        progress_bar(title, len(layers), "layers", run.progress) as advance,
    ):
        return source_moments(
            checkpoint,
            rows,
            before=known,
            dtype=arithmetic.dtype,
            device=run.resolved_device,
            state_bytes=budget.state_bytes,
            scratch=run.scratch,
            progress=advance,
        )
