"""A folder of packed weights as it lies there, whoever made it: its matrices, and the tensors they are of."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint, TensorInfo
from quantize.checkpoint.config import read_config
from quantize.dtypes import FLOATS
from quantize.errors import BadInput, Unsupported
from quantize.formats.awq import AwqFormat
from quantize.formats.gptq import GptqFormat
from quantize.formats.packed import PackedFormat, packed_shape, stored_tensors
from quantize.formats.told import Rule, read_told, told_sources
from quantize.hf.matrices import DecoderLinears, Linear, decoder_linears
from quantize.numerics.grids import Grid
from quantize.terminal import printable

#: what ``checkpoint_format`` calls a version of GPTQ's packing
VERSIONS = {"gptq": 1, "gptq_v2": 2}


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
    if (config.get("quantization_config") or {}).get("quant_method") not in ("gptq", "awq"):
        raise BadInput(f"{folder}: its weights are not packed as GPTQ or AWQ; give such a folder")
    said = read_told(folder, config)
    gptq = said.quant_method == "gptq"
    packing = said.checkpoint_format or said.format or "gptq"
    if gptq and packing not in VERSIONS:
        raise Unsupported(f"{folder}: is packed as {printable(packing, 40)}, not as gptq")
    bits, group_size = said.bits, said.group_size
    symmetric = said.sym if gptq else not said.zero_point
    made = GptqFormat if gptq else AwqFormat
    stored = stored_tensors(folder)
    usual = made(bits, group_size, symmetric).grid
    rules = (said.dynamic or {}) if gptq else {}
    found: dict[str, tuple[int, int]] = {}
    special: dict[str, Grid] = {}
    known = dict(stored.tensors)
    for name in known:
        base, _, suffix = name.rpartition(".")
        if suffix != "qweight":
            continue
        grid = told_grid(folder, rules, base, usual)
        shape = packed_shape(known, base, grid.bits, along_inputs=made.along_inputs)
        if shape is not None:
            found[base] = shape[:2]
            if grid != usual:
                special[base] = grid
    tensors = {name: info for name, info in stored.tensors.items() if name.rpartition(".")[0] not in found}
    checkpoint, decoder, linears = source_of(folder, config, stored, found, tensors, trust_remote_code)
    format: PackedFormat = made(bits, group_size, symmetric, linears, decoder, tuple(special.items()))
    if isinstance(format, GptqFormat):
        format = replace(format, version=VERSIONS[packing])
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

    Errors: BadInput where one is none of its model's, or they are fewer than is told; Unsupported where
    transformers lacks the architecture.
    """
    # a bias beside packed tensors is a tensor of the source
    tensors |= {f"{b}.bias": i for b in found if (i := stored.tensors.get(f"{b}.bias"))}
    float_dtype = next((info.dtype for info in tensors.values() if info.dtype in FLOATS), "F32")
    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    told = told_sources(folder, config)
    values, packed = sum(map(prod, told.values())), sum(map(prod, found.values()))
    if values > packed:  # before anything is made of that size
        raise BadInput(
            f"{folder}: by its quantization_config there are {values:,} values in {len(told)} tensors, but "
            f"only {packed:,} are packed; fetch config and weights of one model"
        )
    tensors |= {name: TensorInfo(name, shape, float_dtype) for name, shape in told.items()}

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


def told_grid(folder: Path, rules: dict[str, Rule | None], name: str, usual: Grid) -> Grid:
    """What ``dynamic`` says of a matrix: by the first rule that fits its name from the start, as GPTQModel
    reads it."""
    for rule, said in rules.items():
        try:
            fits = re.match(rule.removeprefix("+:"), name) if not rule.startswith("-:") else None
        except re.error as error:
            raise BadInput(
                f"{folder}: dynamic of its quantization_config: {printable(rule, 60)} is no regular "
                f"expression: {error}"
            ) from None
        if fits and said is not None:
            return replace(
                usual,
                bits=said.bits or usual.bits,
                group_size=said.group_size or usual.group_size,
                symmetric=usual.symmetric if said.sym is None else said.sym,
            )
    return usual
