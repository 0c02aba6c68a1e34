"""What the formats of AutoGPTQ, AutoAWQ and compressed-tensors share: packed tensors for each matrix, in
groups of inputs, beside the source's other tensors as they were."""

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint, TensorInfo, read_weights
from quantize.checkpoint.config import read_config
from quantize.checkpoint.entries import Entries
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
#: model types whose decoders GPTQModel 7.6 opens where a test opens them
DENSE_OPENED = frozenset(
    {
        "cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "phi",
        "qwen2", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2",
    }
)  # fmt: skip
#: key of ``quantization_config.meta``: shapes of the source's tensors that are no matrix (outputs, inputs)
SOURCES = "sources"


@dataclass(frozen=True)
class PackedFormat(FolderFormat):
    """``group_size`` -1: one scale for each output. ``linears``: the matrices that are quantized, of
    ``decoder``; ``special``: by name, the grids of those that differ from ``grid``."""

    bits: int
    group_size: int
    symmetric: bool
    linears: tuple[Linear, ...] = ()
    decoder: DecoderLinears | None = None
    special: tuple[tuple[str, Grid], ...] = ()

    loads_in: ClassVar[tuple[str, ...]] = ("transformers", "vllm", "sglang", "gptqmodel")
    config_bytes: ClassVar[int] = 2 * CONFIG_EXTRA_BYTES  # quantize_config.json too
    #: who opens no experts one by one
    not_opened_by: ClassVar[str] = "transformers and GPTQModel"
    #: whether quantize_config.json says what config.json does
    second_config: ClassVar[bool] = True
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
    def packed(self, codes: Codes, grid: Grid) -> dict[str, np.ndarray]:
        """The tensors of one matrix, by the last part of their names."""

    @abstractmethod
    def unpacked(self, tensors: dict[str, np.ndarray], grid: Grid) -> np.ndarray:
        """(outputs, inputs) float32: the inverse of ``packed``, by numpy alone."""

    @abstractmethod
    def matrix_entries(self, linear: Linear) -> Iterator[Entry]:
        """What is stored of one matrix."""

    @cached_property
    def _special(self) -> dict[str, Grid]:
        return dict(self.special)

    def grid_of(self, linear: Linear) -> Grid:
        return self._special.get(linear.name, self.grid)

    def called(self, linear: Linear) -> str:
        """How the storage of a matrix is called."""
        grid = self.grid_of(linear)
        group = f" g{grid.group_size}" if grid.group_size > 0 else " per channel"
        return f"{self.storage}-int{grid.bits}{group}"

    @cached_property
    def by_source(self) -> dict[str, list[Linear]]:
        """A tied head is of no tensor of its own."""
        found: dict[str, list[Linear]] = {}
        for linear in self.linears:
            if linear is self.untied:
                continue
            found.setdefault(linear.source, []).append(linear)
        return found

    @property
    def head(self) -> Linear | None:
        """The output layer, where it is quantized."""
        output = self.decoder.output if self.decoder else None
        return output if output is not None and output in self.linears else None

    @property
    def untied(self) -> Linear | None:
        """The same, where it was the embedding, which stays beside it."""
        return self.head if self.decoder and self.head is self.decoder.tied_head else None

    def groups(self, linear: Linear) -> int:
        size = self.grid_of(linear).group_size
        return -(-linear.inputs // size) if size > 0 else 1

    def pack(self, linear: Linear, codes: Any) -> dict[str, np.ndarray]:
        """The tensors of one matrix, by their names in the file. ``codes``: what ``packed`` takes."""
        packed = self.packed(codes, self.grid_of(linear))
        return {f"{linear.name}.{suffix}": array for suffix, array in packed.items()}

    def stored_type(self, name: str) -> str:
        """safetensors' name of the type of the tensor ``name`` of ``pack``; empty where its array tells."""
        return ""

    def read_matrix(self, stored: Checkpoint, linear: Linear) -> np.ndarray:
        """(outputs, inputs) float32 of a matrix in the files."""
        return self.unpacked(tensors_of(stored, linear.name), self.grid_of(linear))

    def codes_of(self, stored: Checkpoint, linear: Linear) -> "tuple[np.ndarray, ...] | None":
        """Codes (i, o), zero points and scales (g, o), and the group of each input (i,), of a matrix in the
        files; None where the format has them otherwise."""
        return None

    def extras(self, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
        """Tensors beside those of the source that loaders of the format look for."""
        return {}

    def entries(self, checkpoint: Checkpoint, name: str, quantized: bool) -> Iterator[Entry]:
        if self.untied and name == self.untied.source:
            yield from self.matrix_entries(self.untied)
        if not quantized:
            yield name, checkpoint.tensors[name].dtype, checkpoint.tensors[name].shape
            return
        for linear in self.by_source[name]:
            yield from self.matrix_entries(linear)

    def quantized(self, stage: Path) -> dict[str, str]:
        """A source's tensor counts once all of its matrices are there."""
        tensors = dict(stored_tensors(stage).tensors)
        there = {
            linear.name
            for linear in self.linears
            if packed_shape(tensors, linear.name, self.grid_of(linear).bits, along_inputs=self.along_inputs)
            == (linear.outputs, linear.inputs, self.groups(linear))
        }
        return {
            source: self.called(linears[0])
            for source, linears in self.by_source.items()
            if all(linear.name in there for linear in linears)
        }

    def dequantize(self, stage: Path, checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
        """Scales that AWQ moved from a layer's inputs into the norm or layer before it stay there: single
        tensors differ from the source's by more than rounding then; the model they make up does not."""
        for name, values in self.by_entry(stage, checkpoint):
            yield name, values.whole() if isinstance(values, Entries) else values

    def by_entry(self, stage: Path, checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray | Entries]]:
        """``dequantize``, experts that the source holds in one tensor one at a time."""
        stored = stored_tensors(stage)
        for name, info in checkpoint.tensors.items():
            linears = self.by_source.get(name)
            if linears is None:
                yield name, stored.read_float32(name)
            elif len(info.shape) == 3 and all(linear.in_source.index is not None for linear in linears):
                yield name, Entries(info.shape, partial(self._entry, stored, name, info.shape[1:]))
            else:
                whole = np.empty(info.shape, np.float32)
                for linear in linears:
                    linear.give(whole, self.read_matrix(stored, linear))
                yield name, whole
        if self.untied:
            tensors = tensors_of(stored, self.untied.name)
            yield f"{self.untied.name}.weight", self.unpacked(tensors, self.grid_of(self.untied))

    def _entry(self, stored: Checkpoint, source: str, shape: tuple[int, ...], index: int) -> np.ndarray:
        values = np.empty(shape, np.float32)
        for linear in self.by_source[source]:
            if linear.in_source.index == index:
                linear.in_entry.give(values, self.read_matrix(stored, linear))
        return values

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
        return {**self.own_config(), "lm_head": self.head is not None, "pack_dtype": "int32", "meta": meta}

    @abstractmethod
    def own_config(self) -> dict[str, Any]:
        """What this format's loaders read beside that, in their words."""

    def opener(self, folder: Path) -> str:
        """Who opens what lies in ``folder``: transformers where each packed matrix is the weight of a layer
        that it replaces, else GPTQModel, or this program with the weights unpacked."""
        initialised = self.decoder is not None and self.decoder.initialised
        if not self.as_transformers_reads:
            return OWN
        if not initialised and all(linear.module in self.replaced for linear in self.linears):
            return TRANSFORMERS
        return GPTQMODEL if GPTQMODEL in self.experts_openers(folder) else OWN

    @property
    def as_transformers_reads(self) -> bool:
        """Whether all matrices are of one grid, and in decoder layers: transformers' own loader knows no
        others."""
        return not self.special and self.head is None

    def engine_opens(self, folder: Path) -> bool:
        """Whether ``GPTQModel.load`` reads what transformers' own loader does not, given a 16-bit dtype and
        its PyTorch kernels, which are the ones that know all numbers of bits."""
        known = str(read_config(folder).get("model_type")) in DENSE_OPENED
        return known and all(linear.module in self.replaced for linear in self.linears)

    def float32_kernels(self, stage: Path) -> bool:
        """Of those that transformers chooses from; GPTQModel itself loads none in float32."""
        return self.opener(stage) == TRANSFORMERS

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


def tensors_of(stored: Checkpoint, base: str) -> dict[str, np.ndarray]:
    found = {}
    for suffix in ("qweight", "qzeros", "scales", "g_idx"):
        name = f"{base}.{suffix}"
        if name in stored.tensors:
            found[suffix] = stored.read_float32(name) if suffix == "scales" else stored.read(name)
    return found


def packed_shape(
    tensors: Mapping[str, TensorInfo], base: str, bits: int, *, along_inputs: bool
) -> tuple[int, int, int] | None:
    """(outputs, inputs, groups) of a matrix whose packed tensors are all there, int32, of shapes that agree
    for ``bits``; else None.

    ``along_inputs``: whether qweight is packed along the inputs (GPTQ) or the outputs (AWQ).
    """
    info = tensors.get(f"{base}.qweight")
    zeros, scales = tensors.get(f"{base}.qzeros"), tensors.get(f"{base}.scales")
    if info is None or zeros is None or scales is None:
        return None
    if not info.dtype == zeros.dtype == "I32" or scales.dtype not in FLOATS:
        return None
    if len(info.shape) != 2 or len(scales.shape) != 2:
        return None
    groups, outputs = scales.shape
    rows, columns = info.shape
    inputs = rows * 32 // bits if along_inputs else rows
    width = columns if along_inputs else columns * 32 // bits
    index = tensors.get(f"{base}.g_idx")
    agree = width == outputs and zeros.shape == (groups, outputs * bits // 32)
    return (outputs, inputs, groups) if agree and (index is None or index.shape == (inputs,)) else None


def relative(modules: tuple[str, ...], layers: tuple[str, ...]) -> dict[str, list[str]]:
    """Modules of decoder layers by their names within one -> their whole names."""
    prefix = re.compile(rf"(?:{'|'.join(re.escape(name) for name in layers)})\.(.+)")
    found: dict[str, list[str]] = {}
    for module in modules:
        if match := prefix.fullmatch(module):
            found.setdefault(match[1], []).append(module)
    return found
