"""The importance matrix of a source model over calibration text, computed as calibrated engines run it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.calibration.importance import Computed, importance_matrix, source_moments, with_first_token
from quantize.calibration.layer_pass import BATCH_TOKENS
from quantize.calibration.windows import Calibration
from quantize.checkpoint.checkpoint import Checkpoint, sha256_file
from quantize.engines.native.budget import Budget
from quantize.engines.native.precision import arithmetic_of
from quantize.gguf.importance.file import write_imatrix
from quantize.hf.matrices import decoder_linears
from quantize.progress import progress_bar
from quantize.recipe import RunOptions
from quantize.staging import temporary_folder

#: raised whenever the same text gives another matrix
VERSION = 1


@dataclass(frozen=True)
class OwnImatrix:
    """``windows`` of ``window_tokens``; ``compute_dtype``: what the model ran in."""

    computed: Computed
    windows: int
    window_tokens: int
    compute_dtype: str

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


def own_imatrix(
    checkpoint: Checkpoint, calibration: Calibration, dataset: str, run: RunOptions
) -> OwnImatrix:
    """Over the windows of ``calibration``, each beginning with the token that the tokenizer puts before a
    text. ``dataset``: the name of the text, for the file.

    Errors: BadInput where ``run`` allows too little memory; see ``compute_imatrix``.
    """
    ids, arithmetic = with_first_token(checkpoint, calibration.ids), arithmetic_of(run)
    layers = decoder_linears(checkpoint).layers
    budget = Budget(checkpoint, layers, run, BATCH_TOKENS, hessians=False)
    title = f"{checkpoint.name}: importances"
    with (
        arithmetic.used(run.threads),
        progress_bar(title, len(layers), "layers", run.progress) as advance,
    ):
        moments = source_moments(
            checkpoint,
            ids,
            dtype=arithmetic.dtype,
            device=run.resolved_device,
            state_bytes=budget.state_bytes,
            scratch=run.scratch,
            progress=advance,
        )
    computed = importance_matrix(checkpoint, moments, dataset, ids.shape)
    return OwnImatrix(computed, len(ids), ids.shape[1], arithmetic.name)
