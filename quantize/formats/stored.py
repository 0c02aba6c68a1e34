"""A folder of packed weights as it lies there, whoever made it: its matrices, and the tensors they are of."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint, TensorInfo
from quantize.checkpoint.config import read_config
from quantize.dtypes import FLOATS
from quantize.errors import BadInput, Unsupported
from quantize.formats.awq import AwqFormat
from quantize.formats.gptq import GptqFormat
from quantize.formats.packed import SOURCES, PackedFormat, packed_layers, stored_tensors
from quantize.hf.matrices import decoder_linears
from quantize.terminal import printable


@dataclass(frozen=True)
class Stored:
    """``checkpoint``: the tensors of the source that the folder's are of, by shape; their data is in
    ``format``'s reading of ``folder``."""

    folder: Path
    checkpoint: Checkpoint
    format: PackedFormat

    def whole(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every tensor of the source, by this program's reader, float32."""
        return self.format.dequantize(self.folder, self.checkpoint)


def stored_packed(folder: Path, *, trust_remote_code: bool = False) -> Stored:
    """Errors: BadInput where it is not a folder of GPTQ or AWQ weights, or its matrices are not those of its
    model; Unsupported where transformers lacks the architecture."""
    config = read_config(folder)
    said = config.get("quantization_config") or {}
    kind = said.get("quant_method")
    if kind not in ("gptq", "awq"):
        raise BadInput(f"{folder}: its weights are not packed as GPTQ or AWQ; give such a folder")
    if kind == "gptq" and said.get("checkpoint_format", said.get("format", "gptq")) != "gptq":
        raise Unsupported(
            f"{folder}: is packed as {printable(said.get('checkpoint_format'), 40)}, not as gptq"
        )
    bits, group_size = int(said.get("bits", 4)), int(said.get("group_size", -1))
    symmetric = bool(said.get("sym", True)) if kind == "gptq" else not said.get("zero_point", True)
    made = GptqFormat if kind == "gptq" else AwqFormat
    stored = stored_tensors(folder)
    found = packed_layers(dict(stored.tensors), bits, along_inputs=made.along_inputs)
    tensors = {name: info for name, info in stored.tensors.items() if name.rpartition(".")[0] not in found}
    # a bias beside packed tensors is a tensor of the source
    tensors |= {f"{b}.bias": i for b in found if (i := stored.tensors.get(f"{b}.bias"))}
    float_dtype = next((info.dtype for info in tensors.values() if info.dtype in FLOATS), "F32")
    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    known = ((said.get("meta") or {}).get(SOURCES) or {}).items()
    tensors |= {name: TensorInfo(name, tuple(shape), float_dtype) for name, shape in known}

    def source() -> Checkpoint:
        return Checkpoint(folder, str(folder), None, plain, dict(tensors), trust_remote_code)

    # What is part of a tensor that the folder tells of is no tensor of its own.
    parts = {linear.name for linear in decoder_linears(source())} if known else set()
    for base, (outputs, inputs, _) in found.items():
        if base not in parts:
            tensors[f"{base}.weight"] = TensorInfo(f"{base}.weight", (outputs, inputs), float_dtype)
    checkpoint = source()
    decoder = decoder_linears(checkpoint)
    linears = tuple(linear for linear in decoder if linear.name in found)
    if len(linears) != len(found):
        odd = sorted(set(found) - {linear.name for linear in linears})
        raise BadInput(
            f"{folder}: {odd[0]} is no matrix of its model's decoder layers; "
            "fetch config and weights of one model"
        )
    return Stored(folder, checkpoint, made(bits, group_size, symmetric, linears, decoder))
