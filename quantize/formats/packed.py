"""What the formats of AutoGPTQ and AutoAWQ share: packed tensors for each matrix, in groups of inputs, beside
the source's other tensors as they were."""

import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint, TensorInfo, read_weights
from quantize.checkpoint.config import read_config
from quantize.dtypes import FLOATS
from quantize.formats.folder import CONFIG_EXTRA_BYTES, Entry, FolderFormat
from quantize.hf.matrices import DecoderLinears, Linear
from quantize.numerics.grids import Codes, Grid

#: who opens a folder
TRANSFORMERS, GPTQMODEL, OWN = "transformers", "gptqmodel", "quantwright"
#: model type -> who opens its experts, stored one by one: GPTQModel 7.6 where a test opens them; vLLM and
#: SGLang where their loaders of that model (mixtral, olmoe, qwen2_moe, deepseek_v2) map each such name.
#: SGLang joins DeepSeek's q_a_proj and kv_a_proj_with_mqa along the wrong axis of GPTQ's.
EXPERTS_OPENED = {
    "cohere2_moe": (GPTQMODEL,),
    "deepseek_v2": (GPTQMODEL, "vllm"),
    "deepseek_v3": (GPTQMODEL, "vllm"),
    "dots1": (GPTQMODEL,),
    "hunyuan_v1_moe": (GPTQMODEL,),
    "mixtral": ("vllm", "sglang"),
    "olmoe": (GPTQMODEL, "vllm", "sglang"),
    "qwen2_moe": (GPTQMODEL, "vllm", "sglang"),
    "qwen3_moe": (GPTQMODEL, "vllm", "sglang"),
    "solar_open": (GPTQMODEL,),
}
#: key of ``quantization_config.meta``: shapes of the source's tensors that are no matrix (outputs, inputs)
SOURCES = "sources"


@dataclass(frozen=True)
class PackedFormat(FolderFormat):
    """``group_size`` -1: one scale for each output. ``linears``: the matrices that are quantized, of
    ``decoder``."""

    bits: int
    group_size: int
    symmetric: bool
    linears: tuple[Linear, ...] = ()
    decoder: DecoderLinears | None = None

    loads_in: ClassVar[tuple[str, ...]] = ("transformers", "vllm", "sglang", "gptqmodel")
    float32_kernels: ClassVar[bool] = True
    config_bytes: ClassVar[int] = 2 * CONFIG_EXTRA_BYTES  # quantize_config.json too
    #: whether codes are packed along the inputs, or along the outputs
    along_inputs: ClassVar[bool]
    #: classes of linear layers that transformers replaces when it loads the format
    replaced: ClassVar[tuple[str, ...]]

    @property
    def slopes(self) -> None:
        return None

    @property
    @abstractmethod
    def grid(self) -> Grid:
        """What codes and zero points the file can express."""

    @abstractmethod
    def packed(self, codes: Codes) -> dict[str, np.ndarray]:
        """The tensors of one matrix, by the last part of their names."""

    @abstractmethod
    def unpacked(self, tensors: dict[str, np.ndarray]) -> np.ndarray:
        """(outputs, inputs) float32: the inverse of ``packed``, by numpy alone."""

    @abstractmethod
    def matrix_entries(self, linear: Linear) -> Iterator[Entry]:
        """What is stored of one matrix."""

    @property
    def name(self) -> str:
        """How a tensor's storage is called."""
        group = f" g{self.group_size}" if self.group_size > 0 else " per channel"
        return f"{self.storage}-int{self.bits}{group}"

    @cached_property
    def by_source(self) -> dict[str, list[Linear]]:
        found: dict[str, list[Linear]] = {}
        for linear in self.linears:
            found.setdefault(linear.source, []).append(linear)
        return found

    def groups(self, inputs: int) -> int:
        return -(-inputs // self.group_size) if self.group_size > 0 else 1

    def pack(self, linear: Linear, codes: Codes) -> dict[str, np.ndarray]:
        """The tensors of one matrix, by their names in the file."""
        return {f"{linear.name}.{suffix}": array for suffix, array in self.packed(codes).items()}

    def extras(self, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
        """Tensors beside those of the source that loaders of the format look for."""
        return {}

    def entries(self, checkpoint: Checkpoint, name: str, quantized: bool) -> Iterator[Entry]:
        if not quantized:
            yield name, checkpoint.tensors[name].dtype, checkpoint.tensors[name].shape
            return
        for linear in self.by_source[name]:
            yield from self.matrix_entries(linear)

    def quantized(self, stage: Path) -> dict[str, str]:
        """A source's tensor counts once all of its matrices are there."""
        tensors = dict(stored_tensors(stage).tensors)
        shapes = packed_layers(tensors, self.bits, along_inputs=self.along_inputs)
        there = {
            linear.name
            for linear in self.linears
            if shapes.get(linear.name) == (linear.outputs, linear.inputs, self.groups(linear.inputs))
        }
        return {
            source: self.name
            for source, linears in self.by_source.items()
            if all(linear.name in there for linear in linears)
        }

    def dequantize(self, stage: Path, checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
        """Scales that AWQ moved from a layer's inputs into the norm or layer before it stay there: single
        tensors differ from the source's by more than rounding then; the model they make up does not."""
        stored = stored_tensors(stage)
        for name, info in checkpoint.tensors.items():
            if name in stored.tensors:
                yield name, stored.read_float32(name)
                continue
            whole = np.empty(info.shape, np.float32)
            for linear in self.by_source[name]:
                linear.give(whole, self.unpacked(_tensors_of(stored, linear.name)))
            yield name, whole

    def sources(self, checkpoint: Checkpoint) -> dict[str, list[int]]:
        """Shapes of the source's tensors that are no single matrix (outputs, inputs): what a loader of whole
        tensors must know of them."""
        return {
            source: list(checkpoint.tensors[source].shape)
            for source, linears in self.by_source.items()
            if checkpoint.tensors[source].shape != (linears[0].outputs, linears[0].inputs)
            or linears[0].name != source.removesuffix(".weight")
        }

    def config(self, checkpoint: Checkpoint, meta: dict[str, Any]) -> dict[str, Any]:
        """``quantization_config``: what loaders read. ``meta``: of who made it."""
        sources = self.sources(checkpoint)
        meta = {**meta, **({SOURCES: sources} if sources else {})}
        return {**self.own_config(), "lm_head": False, "pack_dtype": "int32", "meta": meta}

    @abstractmethod
    def own_config(self) -> dict[str, Any]:
        """What this format's loaders read beside that, in their words."""

    def opener(self, folder: Path) -> str:
        """Who opens what lies in ``folder``: transformers where each packed matrix is the weight of a layer
        that it replaces, else GPTQModel, or this program with the weights unpacked."""
        initialised = self.decoder is not None and self.decoder.initialised
        if not initialised and all(linear.module in self.replaced for linear in self.linears):
            return TRANSFORMERS
        return GPTQMODEL if GPTQMODEL in self.experts_openers(folder) else OWN

    def experts_openers(self, folder: Path) -> tuple[str, ...]:
        """Who else opens experts that transformers keeps in one tensor; the source holds them one by one."""
        one_by_one = all(linear.in_source.index is None for linear in self.linears)
        model_type = str(read_config(folder).get("model_type"))
        return EXPERTS_OPENED.get(model_type, ()) if one_by_one else ()

    def left(self) -> tuple[str, ...]:
        """Modules that loaders must not take for quantized: other linear layers, and what chooses experts."""
        if self.decoder is None:
            return ()
        mine = {linear.layer for linear in self.linears}
        dropped = [linear.layer for linear in self.decoder if linear.layer not in mine]
        routers = [
            name.removesuffix(".weight")
            for name, why in self.decoder.kept
            if why.startswith("it chooses") and name.endswith(".weight")
        ]
        return tuple(dict.fromkeys([*self.decoder.others, *dropped, *routers]))

    def beside(self) -> tuple[str, ...]:
        """Modules that are no part of the text model, none of which is quantized: in transformers' names, and
        by the last part of those, as vLLM's models begin with that."""
        if self.decoder is None:
            return ()
        names = [name for name, _ in self.decoder.beside]
        return tuple(dict.fromkeys([*names, *(name.rpartition(".")[2] for name in names)]))


def stored_tensors(stage: Path) -> Checkpoint:
    """The safetensors under ``stage``, readable tensor by tensor, whatever else is or is not there yet."""
    return Checkpoint(stage, str(stage), None, {}, read_weights(stage)[0])


def _tensors_of(stored: Checkpoint, base: str) -> dict[str, np.ndarray]:
    found = {}
    for suffix in ("qweight", "qzeros", "scales", "g_idx"):
        name = f"{base}.{suffix}"
        if name in stored.tensors:
            found[suffix] = stored.read_float32(name) if suffix == "scales" else stored.read(name)
    return found


def packed_layers(
    tensors: dict[str, TensorInfo], bits: int, *, along_inputs: bool
) -> dict[str, tuple[int, int, int]]:
    """Matrices whose packed tensors are all there, int32, of shapes that agree for ``bits``: base name ->
    (outputs, inputs, groups).

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
        rows, columns = info.shape
        inputs = rows * 32 // bits if along_inputs else rows
        width = columns if along_inputs else columns * 32 // bits
        index = tensors.get(f"{base}.g_idx")
        if (
            width == outputs
            and zeros.shape == (groups, outputs * bits // 32)
            and (index is None or index.shape == (inputs,))
        ):
            found[base] = (outputs, inputs, groups)
    return found


def relative(modules: tuple[str, ...], layers: tuple[str, ...]) -> dict[str, list[str]]:
    """Modules of decoder layers by their names within one -> their whole names."""
    prefix = re.compile(rf"(?:{'|'.join(re.escape(name) for name in layers)})\.(.+)")
    found: dict[str, list[str]] = {}
    for module in modules:
        if match := prefix.fullmatch(module):
            found.setdefault(match[1], []).append(module)
    return found
