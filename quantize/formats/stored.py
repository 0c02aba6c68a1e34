"""A folder of packed weights as it lies there, whoever made it: its matrices, and the tensors they are of."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint, TensorInfo
from quantize.checkpoint.config import read_config
from quantize.dtypes import FLOATS
from quantize.errors import BadInput, Unsupported
from quantize.formats.awq import AwqFormat
from quantize.formats.gptq import GptqFormat
from quantize.formats.packed import SOURCES, PackedFormat, packed_shape, stored_tensors
from quantize.hf.matrices import DecoderLinears, Linear, decoder_linears
from quantize.numerics.grids import Grid
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
    usual = made(bits, group_size, symmetric).grid
    rules = said.get("dynamic") if kind == "gptq" else None
    found: dict[str, tuple[int, int]] = {}
    special: dict[str, Grid] = {}
    known = dict(stored.tensors)
    for name in known:
        base, _, suffix = name.rpartition(".")
        if suffix != "qweight":
            continue
        grid = _told_grid(folder, rules, base, usual)
        shape = packed_shape(known, base, grid.bits, along_inputs=made.along_inputs)
        if shape is not None:
            found[base] = shape[:2]
            if grid != usual:
                special[base] = grid
    tensors = {name: info for name, info in stored.tensors.items() if name.rpartition(".")[0] not in found}
    checkpoint, decoder, linears = source_of(folder, config, stored, found, tensors, trust_remote_code)
    format = made(bits, group_size, symmetric, linears, decoder, tuple(special.items()))
    return Stored(folder, checkpoint, format)


def source_of(
    folder: Path,
    config: dict[str, Any],
    stored: Checkpoint,
    found: dict[str, tuple[int, int]],
    tensors: dict[str, TensorInfo],
    trust_remote_code: bool,
) -> tuple[Checkpoint, DecoderLinears, tuple[Linear, ...]]:
    """What the folder was made of: ``found`` matrices (outputs, inputs) by base name, other ``tensors``; its
    decoder's matrices, and those of them that were found.

    Errors: BadInput where one is none of its model's; Unsupported where transformers lacks the architecture.
    """
    said = config["quantization_config"]
    # a bias beside packed tensors is a tensor of the source
    tensors |= {f"{b}.bias": i for b in found if (i := stored.tensors.get(f"{b}.bias"))}
    float_dtype = next((info.dtype for info in tensors.values() if info.dtype in FLOATS), "F32")
    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    told = ((said.get("meta") or {}).get(SOURCES) or {}).items()
    tensors |= {name: TensorInfo(name, tuple(shape), float_dtype) for name, shape in told}

    def source() -> Checkpoint:
        return Checkpoint(folder, str(folder), None, plain, dict(tensors), trust_remote_code)

    # What is part of a tensor that the folder tells of is no tensor of its own.
    parts = {linear.name for linear in decoder_linears(source())} if told else set()
    for base, (outputs, inputs) in found.items():
        if base not in parts:
            tensors[f"{base}.weight"] = TensorInfo(f"{base}.weight", (outputs, inputs), float_dtype)
    checkpoint = source()
    decoder = decoder_linears(checkpoint)
    every = [*decoder, *([decoder.head] if decoder.head else [])]
    linears = tuple(linear for linear in every if linear.name in found)
    if len(linears) != len(found):
        odd = sorted(set(found) - {linear.name for linear in linears})
        raise BadInput(
            f"{folder}: {odd[0]} is no matrix of its model's decoder layers; "
            "fetch config and weights of one model"
        )
    return checkpoint, decoder, linears


def _told_grid(folder: Path, rules: Any, name: str, usual: Grid) -> Grid:
    """What ``dynamic`` says of a matrix: by the first rule that fits its name from the start, as GPTQModel
    reads it."""
    for rule, said in rules.items() if isinstance(rules, dict) else ():
        try:
            fits = re.match(str(rule).removeprefix("+:"), name) if not str(rule).startswith("-:") else None
        except re.error as error:
            raise BadInput(
                f"{folder}: dynamic of its quantization_config: {printable(str(rule), 60)} is no regular "
                f"expression: {error}"
            ) from None
        if fits and isinstance(said, dict):
            return replace(
                usual,
                bits=int(said.get("bits", usual.bits)),
                group_size=int(said.get("group_size", usual.group_size)),
                symmetric=bool(said.get("sym", usual.symmetric)),
            )
    return usual
