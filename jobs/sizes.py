"""How large an artifact will be, from headers alone: to the byte for GGUF, within one per cent for the other
formats.

A method says so itself where it has ``output_bytes(checkpoint, recipe)``; the layouts of those that ship with
the program are here.
"""

import json
from collections.abc import Callable, Iterator
from math import ceil
from typing import Any

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tensors import ALIGNMENT
from quantize.dtypes import BYTES, FLOATS, STORED, dense
from quantize.gguf.container.writer import _part_kvs, header, padded, split
from quantize.methods.gguf import file_contents
from quantize.methods.registry import method as find_method
from quantize.recipe import Recipe

Entry = tuple[str, str, tuple[int, ...]]  # name, dtype as safetensors calls it, shape
CONFIG_EXTRA_BYTES = 600  # of a quantization_config


def output_bytes(checkpoint: Checkpoint, recipe: Recipe) -> int | None:
    """Bytes of the artifact's files, the manifest left out; None where the method does not tell."""
    method = find_method(recipe.method)
    checkpoint, _ = method.source(checkpoint)
    own = getattr(method, "output_bytes", None)
    if own is not None:
        return int(own(checkpoint, recipe))
    if recipe.method == "gguf":
        return _gguf_bytes(checkpoint, recipe)
    layout = _LAYOUTS.get(recipe.method)
    if layout is None:
        return None
    quantized = method.expected(checkpoint, recipe)
    entries = [
        entry for name in checkpoint.tensors for entry in layout(checkpoint, recipe, name, name in quantized)
    ]
    companions = sum(path.stat().st_size for path in checkpoint.companion_files)
    config = (checkpoint.folder / "config.json").stat().st_size
    extra = (
        0
        if recipe.method == "dense"
        else 2 * CONFIG_EXTRA_BYTES
        if recipe.method in ("gptq", "awq")
        else CONFIG_EXTRA_BYTES
    )
    if recipe.method == "quanto":
        extra += sum(len(name) + 60 for name in quantized)  # quanto_qmap.json
    return _safetensors_bytes(entries) + companions + config + extra


def _safetensors_bytes(entries: list[Entry]) -> int:
    """Of a file holding ``entries``: header and data. Several shards add one header each, which is nothing at
    their size."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in entries:
        size = BYTES[dtype]
        for axis in shape:
            size *= axis
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    return ceil((8 + len(json.dumps(header, separators=(",", ":")))) / ALIGNMENT) * ALIGNMENT + offset


def _dense(checkpoint: Checkpoint, recipe: Any, name: str, quantized: bool) -> Iterator[Entry]:
    info = checkpoint.tensors[name]
    yield name, STORED[recipe.dtype] if info.dtype in FLOATS else info.dtype, info.shape


def _gptq(checkpoint: Checkpoint, recipe: Any, name: str, quantized: bool) -> Iterator[Entry]:
    """AutoGPTQ v1: codes packed along the inputs, zero points along the outputs, half-precision scales, group
    of each input."""
    info = checkpoint.tensors[name]
    if not quantized:
        yield name, info.dtype, info.shape
        return
    outputs, inputs = info.shape
    groups = ceil(inputs / recipe.group_size) if recipe.group_size > 0 else 1
    base = name.removesuffix(".weight")
    yield f"{base}.g_idx", "I32", (inputs,)
    yield f"{base}.qweight", "I32", (inputs * recipe.bits // 32, outputs)
    yield f"{base}.qzeros", "I32", (groups, outputs * recipe.bits // 32)
    yield f"{base}.scales", "F16", (groups, outputs)


def _awq(checkpoint: Checkpoint, recipe: Any, name: str, quantized: bool) -> Iterator[Entry]:
    """AutoAWQ GEMM: codes and zero points packed along the outputs."""
    info = checkpoint.tensors[name]
    if not quantized:
        yield name, info.dtype, info.shape
        return
    outputs, inputs = info.shape
    groups = ceil(inputs / recipe.group_size) if recipe.group_size > 0 else 1
    base = name.removesuffix(".weight")
    yield f"{base}.qweight", "I32", (inputs, outputs * recipe.bits // 32)
    yield f"{base}.qzeros", "I32", (groups, outputs * recipe.bits // 32)
    yield f"{base}.scales", "F16", (groups, outputs)


def _loaded_dtype(checkpoint: Checkpoint) -> str:
    return STORED[dense(checkpoint.dtype, "bfloat16")]


def _quanto(checkpoint: Checkpoint, recipe: Any, name: str, quantized: bool) -> Iterator[Entry]:
    """State dict of optimum-quanto: codes, scales (and shifts for groups) in the model's dtype, two
    activation scales a layer."""
    info, dtype = checkpoint.tensors[name], _loaded_dtype(checkpoint)
    if not quantized:
        yield name, dtype if info.dtype in FLOATS else info.dtype, info.shape
        return
    outputs, inputs = info.shape
    base = name.removesuffix(".weight")
    yield f"{base}.input_scale", dtype, ()
    yield f"{base}.output_scale", dtype, ()
    if recipe.weights in ("int8", "float8"):
        yield f"{name}._data", "I8" if recipe.weights == "int8" else "F8_E4M3", info.shape
        yield f"{name}._scale", dtype, (outputs, 1)
        return
    width = next((size for size in (128, 96, 64, 32) if inputs > 128 and inputs % size == 0), inputs)
    rows, fields = outputs * inputs // width, 2 if recipe.weights == "int4" else 4
    yield f"{name}._data._data", "U8", (ceil(rows / fields), width)
    yield f"{name}._scale", dtype, (rows, 1)
    yield f"{name}._shift", dtype, (rows, 1)


def _bnb(checkpoint: Checkpoint, recipe: Any, name: str, quantized: bool) -> Iterator[Entry]:
    """bitsandbytes: 8-bit rows with one scale each, or 4-bit blocks of 64 with a scale of 32 or, doubly
    quantized, 8 bits."""
    info, dtype = checkpoint.tensors[name], _loaded_dtype(checkpoint)
    if not quantized:
        yield name, dtype if info.dtype in FLOATS else info.dtype, info.shape
        return
    base, size = name.removesuffix(".weight"), info.parameters
    if recipe.weights == "int8":
        yield name, "I8", info.shape
        yield f"{base}.SCB", "F32", (info.shape[0],)
        yield f"{base}.weight_format", "U8", ()
        return
    blocks = ceil(size / 64)
    yield name, "U8", (ceil(size / 2), 1)
    yield f"{name}.absmax", "U8" if recipe.double_quant else "F32", (blocks,)
    yield f"{name}.quant_map", "F32", (16,)
    yield f"{name}.quant_state.bitsandbytes__{recipe.weights}", "U8", (120 if recipe.double_quant else 80,)
    if recipe.double_quant:
        yield f"{name}.nested_absmax", "F32", (ceil(blocks / 256),)
        yield f"{name}.nested_quant_map", "F32", (256,)


_LAYOUTS: dict[str, Callable[[Checkpoint, Any, str, bool], Iterator[Entry]]] = {
    "dense": _dense,
    "gptq": _gptq,
    "awq": _awq,
    "quanto": _quanto,
    "bnb": _bnb,
}


def _gguf_bytes(checkpoint: Checkpoint, recipe: Any) -> int:
    """Exact: the very header that the writer would write, and the padded tensors."""
    contents = file_contents(checkpoint, recipe)
    tensors = contents.tensors
    parts = split(tensors, recipe.split_max_bytes)
    headers = [
        header(_part_kvs(contents.kvs, i, len(parts), len(tensors)), part) for i, part in enumerate(parts)
    ]
    return sum(map(len, headers)) + sum(padded(tensor.size_bytes) for tensor in tensors)
