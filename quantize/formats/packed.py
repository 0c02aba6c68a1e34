"""What the formats of AutoGPTQ and AutoAWQ share: three packed tensors a linear layer, beside the source's
own."""

from pathlib import Path

from quantize.checkpoint.checkpoint import Checkpoint, TensorInfo, read_weights
from quantize.dtypes import FLOATS


def stored_tensors(stage: Path) -> Checkpoint:
    """The safetensors under ``stage``, readable tensor by tensor, whatever else is or is not there yet."""
    return Checkpoint(stage, str(stage), None, {}, read_weights(stage)[0])


def packed_layers(tensors: dict[str, TensorInfo], bits: int, *, along_inputs: bool) -> dict[str, TensorInfo]:
    """Layers whose packed tensors are all there, int32, of shapes that agree for ``bits``: base name -> its
    qweight.

    ``along_inputs``: whether qweight is packed along the inputs (GPTQ) or the outputs (AWQ).
    """
    found = {}
    for name, info in tensors.items():
        base, _, suffix = name.rpartition(".")
        if suffix != "qweight" or info.dtype != "I32" or len(info.shape) != 2:
            continue
        zeros, scales = tensors.get(f"{base}.qzeros"), tensors.get(f"{base}.scales")
        if (
            zeros is None
            or scales is None
            or zeros.dtype != "I32"
            or scales.dtype not in FLOATS
            or len(scales.shape) != 2
        ):
            continue
        groups, outputs = scales.shape
        width = info.shape[1] if along_inputs else info.shape[1] * 32 // bits
        if width == outputs and zeros.shape == (groups, outputs * bits // 32):
            found[base] = info
    return found
