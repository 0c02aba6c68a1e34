"""A GGUF file as a checkpoint: its tensors are made into the checkpoint's as they are read, and only the
small files are written."""

from pathlib import Path

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.reader import Weights
from quantize.gguf.container.reader import read_gguf
from quantize.gguf.to_checkpoint.config import to_config
from quantize.gguf.to_checkpoint.folder import write_small_files
from quantize.gguf.to_checkpoint.tensors import GgufTensors
from quantize.staging import held_until_exit


def open_gguf(
    path: Path, *, source: str = "", tokenizer: bool = True, scratch: Path | None = None
) -> Checkpoint:
    """``source``: what the person typed. Config and tokenizer lie in a folder under ``scratch``, removed when
    the program ends.

    Errors: BadInput for a damaged file, or one whose metadata and tensors contradict each other; Unsupported
    for an architecture or tokenizer with no way back, or a tensor that has no place; StepFailed where the
    disk is full.
    """
    file = read_gguf(path)
    config = to_config(file)
    tensors = GgufTensors(file, config)
    folder = held_until_exit("gguf", scratch)
    write_small_files(file, config, tensors, folder)
    return Checkpoint.open(
        folder,
        source=source or str(path),
        tokenizer=tokenizer,
        weights=Weights(tensors.tensors, tensors, quantized=tensors.quantized),
    )
