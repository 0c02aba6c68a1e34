"""From what a person types to a checkpoint: a local folder (tried first), a .gguf file, or a model on a
hub."""

from pathlib import Path

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.sources.hub import resolve_model


def open_checkpoint(
    model: str | Path, *, trust_remote_code: bool = False, tokenizer: bool = True
) -> Checkpoint:
    """``model``: as of ``quantize.sources.hub.resolve_model``.

    Errors: BadInput for anything wrong with what lies there; Unsupported for a checkpoint that is quantized
    already; StepFailed where the Hub cannot be reached.
    """
    folder, revision = resolve_model(str(model), code=trust_remote_code)
    return Checkpoint.open(
        folder, source=str(model), revision=revision, trust_remote_code=trust_remote_code, tokenizer=tokenizer
    )
