"""From what a person types to a checkpoint: a local folder (tried first), a .gguf file, or a model on a
hub."""

from pathlib import Path

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.sources.compressed_tensors import CompressedTensors
from quantize.sources.dequantized import Make, open_dequantized, quant_method
from quantize.sources.fp8 import float8
from quantize.sources.gguf_file import open_gguf
from quantize.sources.hub import resolve_model
from quantize.sources.mxfp4 import Mxfp4Tensors
from quantize.sources.packed import PackedTensors
from quantize.staging import sweep_temporary

#: what quantization_config calls a way that is undone exactly -> its tensors
UNDONE: dict[str, Make] = {
    "fp8": float8, "mxfp4": Mxfp4Tensors, "compressed-tensors": CompressedTensors, "gptq": PackedTensors,
    "awq": PackedTensors,
}  # fmt: skip


def open_checkpoint(
    model: str | Path,
    *,
    trust_remote_code: bool = False,
    tokenizer: bool = True,
    scratch: Path | None = None,
) -> Checkpoint:
    """``model``: as of ``quantize.sources.hub.resolve_model``. ``scratch``: for the small files of a source
    that is not a folder.

    Errors: BadInput for anything wrong with what lies there; Unsupported for a checkpoint that is quantized
    already; StepFailed where the Hub cannot be reached or the disk is full.
    """
    sweep_temporary(scratch)
    path, revision = resolve_model(str(model), code=trust_remote_code)
    if path.is_file():
        return open_gguf(path, source=str(model), tokenizer=tokenizer, scratch=scratch)
    make = UNDONE.get(quant_method(path) or "")
    if make is not None:
        return open_dequantized(
            path,
            make,
            source=str(model),
            revision=revision,
            trust_remote_code=trust_remote_code,
            tokenizer=tokenizer,
            scratch=scratch,
        )
    return Checkpoint.open(
        path, source=str(model), revision=revision, trust_remote_code=trust_remote_code, tokenizer=tokenizer
    )
