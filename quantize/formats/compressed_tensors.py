"""compressed-tensors: what llm-compressor writes and vLLM serves. Tensors of each matrix beside its name, and
a ``quantization_config`` that says of what scheme they are. ``quantize.numerics.compressed_tensors``
describes the tensors."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tensors import torch_bytes
from quantize.dtypes import FLOATS, NUMPY, to_float32
from quantize.formats.folder import Entry
from quantize.formats.packed import GPTQMODEL, OWN, SOURCES, PackedFormat, stored_tensors
from quantize.hf.matrices import Linear
from quantize.kernels.rounded import RoundedRows
from quantize.numerics.compressed_tensors import dequantize
from quantize.numerics.grids import Codes, Grid
from quantize.numerics.packing import pack_bits, pack_rows
from quantize.numerics.small_floats import FloatCodes

#: the library's version whose configs these are
VERSION = "0.20.0"
#: what scales of activations of NVFP4 are divided by, stored beside a matrix
INPUTS = "input_global_scale"
#: last parts of the names of the scales of keys and values, beside an attention's matrices
KEPT = ("k_scale", "v_scale")
#: how the library describes an 8-bit cache of keys and values
KV_FP8 = {
    "num_bits": 8, "type": "float", "symmetric": True, "group_size": None, "strategy": "tensor",
    "dynamic": False,
}  # fmt: skip
#: last parts of the names of what is stored of a weight
PARTS = (
    "weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx",
    "weight_global_scale",
)  # fmt: skip


@dataclass(frozen=True)
class Scheme:
    """``layout``: the library's name of the format; ``group``: inputs to a scale, -1: all of a row, 0: as the
    recipe says; ``activations``: how loaders round what meets the weights (``numerics.activations``), empty:
    not; ``title``: how a tensor's storage is called."""

    layout: str
    bits: int
    kind: Literal["float", "int"]
    group: int
    title: str
    activations: str = ""
    block: bool = False

    @property
    def packed(self) -> bool:
        return self.layout.endswith("pack-quantized")


BLOCK = 128
SCHEMES = {
    "fp8-dynamic": Scheme("float-quantized", 8, "float", -1, "fp8", "fp8_token"),
    "fp8-block": Scheme("float-quantized", 8, "float", BLOCK, "fp8 128x128", "fp8_g128", block=True),
    "int8": Scheme("int-quantized", 8, "int", -1, "int8", "int8_token"),
    "w8a16": Scheme("pack-quantized", 8, "int", 0, "int8"),
    "w4a16": Scheme("pack-quantized", 4, "int", 0, "int4"),
    "nvfp4a16": Scheme("nvfp4-pack-quantized", 4, "float", 16, "nvfp4"),
    "nvfp4": Scheme("nvfp4-pack-quantized", 4, "float", 16, "nvfp4", "nvfp4_g16"),
    "mxfp4a16": Scheme("mxfp4-pack-quantized", 4, "float", 32, "mxfp4"),
    "mxfp4": Scheme("mxfp4-pack-quantized", 4, "float", 32, "mxfp4", "mxfp4_g32"),
}
#: how the library describes activations
ACTIVATIONS: dict[str, dict[str, Any]] = {
    "fp8_token": {"num_bits": 8, "type": "float", "group_size": None, "strategy": "token"},
    "int8_token": {"num_bits": 8, "type": "int", "group_size": None, "strategy": "token"},
    "fp8_g128": {"num_bits": 8, "type": "float", "group_size": BLOCK, "strategy": "group"},
    "nvfp4_g16": {
        "num_bits": 4, "type": "float", "group_size": 16, "strategy": "tensor_group", "dynamic": "local",
        "scale_dtype": "torch.float8_e4m3fn", "observer": "static_minmax",
    },
    "mxfp4_g32": {
        "num_bits": 4, "type": "float", "group_size": 32, "strategy": "group", "scale_dtype": "torch.uint8",
    },
}  # fmt: skip


@dataclass(frozen=True)
class CtFormat(PackedFormat):
    """``scheme``: a name in ``SCHEMES``; ``scale_type``: safetensors' name of what scales of integers and of
    E4M3 are stored in, which is what loaders compute in. ``folded``: whether AWQ moved scales into other
    tensors. ``kv_cache``: whether scales of a float8 cache of keys and values are stored."""

    scheme: str = "w4a16"
    scale_type: str = "BF16"
    folded: bool = False
    kv_cache: bool = False

    storage: ClassVar[str] = "compressed-tensors"
    hub_tag: ClassVar[str] = "compressed-tensors"
    loads_in: ClassVar[tuple[str, ...]] = ("transformers", "vllm", "sglang")
    opening_advice: ClassVar[str] = "With `pip install transformers compressed-tensors accelerate`:"
    config_bytes: ClassVar[int] = 1200
    second_config: ClassVar[bool] = False
    not_opened_by: ClassVar[str] = "transformers"
    along_inputs: ClassVar[bool] = True
    replaced: ClassVar[tuple[str, ...]] = ("Linear",)

    def float32_kernels(self, stage: Path) -> bool:
        return False

    @property
    def how(self) -> Scheme:
        return SCHEMES[self.scheme]

    @property
    def moves_scales(self) -> bool:  # type: ignore[override]
        return self.folded

    @property
    def grid(self) -> Grid:
        """Of the schemes of integers. At 8 bits the sign of a scale gains nothing, and not all kernels of
        8-bit products expect it."""
        held: Literal["float16", "bfloat16"] = "bfloat16" if self.scale_type == "BF16" else "float16"
        return Grid(self.bits, self.group_size, self.symmetric, scales=held, positive=self.bits == 8)

    @property
    def name(self) -> str:
        group = f" g{self.group_size}" if self.how.group == 0 and self.group_size > 0 else ""
        return self.how.title + group

    def fits(self, kind: str) -> bool:
        return kind == self.name

    def activation_types(self, stage: Path) -> dict[str, str] | None:
        """Where this program opens the folder, each token is rounded by itself, as vLLM does."""
        kept = self._kept_types(stage)
        kind = self.how.activations
        if self.opener(stage) == OWN:
            kind = kind.replace("_token", "_row")
        if self.measured:
            stored = stored_tensors(stage)
            scales = {
                source: float(stored.read(f"{linears[0].name}.{INPUTS}")[0])
                for source, linears in self.by_source.items()
            }
            return {source: f"{kind}_{scale!r}" for source, scale in scales.items()} | kept
        return (dict.fromkeys(self.by_source, kind) if kind else {}) | kept or None

    @property
    def attentions(self) -> tuple[tuple[str, str], ...]:
        """(decoder layer, its attention), in order, of those that hold a matrix of keys and one of values."""
        names = {linear.parameter.rpartition(".")[0] for linear in self.decoder or ()}
        return tuple(
            (layer, attention)
            for layer in (self.decoder.layer_names if self.decoder else ())
            if {f"{(attention := f'{layer}.self_attn')}.{part}" for part in ("k_proj", "v_proj")} <= names
        )

    @property
    def kept_states(self) -> tuple[str, ...]:
        """Names of the scales of keys and values."""
        each = self.attentions if self.kv_cache else ()
        return tuple(f"{attention}.{part}" for _, attention in each for part in KEPT)

    @property
    def kept_entries(self) -> Iterator[Entry]:
        return ((name, self.scale_type, (1,)) for name in self.kept_states)

    def _kept_types(self, stage: Path) -> dict[str, str]:
        """By attention, as ``round_like_runtime`` takes it."""
        if not self.kv_cache:
            return {}
        stored = stored_tensors(stage)
        found = {}
        for _, attention in self.attentions:
            scales = (float(stored.read_float32(f"{attention}.{part}")[0]) for part in KEPT)
            found[attention] = "_".join(["kv_fp8", *map(repr, scales)])
        return found

    def entries(self, checkpoint: Checkpoint, name: str, quantized: bool) -> Iterator[Entry]:
        yield from super().entries(checkpoint, name, quantized)
        if quantized and name == next(iter(self.by_source)):
            yield from self.kept_entries

    def matrix_entries(self, linear: Linear) -> Iterator[Entry]:
        return (
            (f"{linear.name}.{part}", dtype, shape)
            for part, (dtype, shape) in self._layout(linear.outputs, linear.inputs).items()
        )

    def _layout(self, outputs: int, inputs: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """(type, shape) of what is stored of a matrix, by the last part of its name."""
        how, groups = self.how, -(-inputs // self.group_size) if self.group_size > 0 else 1
        if not how.packed:
            rows = -(-outputs // BLOCK) if how.block else outputs
            kind = "F8_E4M3" if how.kind == "float" else "I8"
            return {"weight": (kind, (outputs, inputs)), "weight_scale": (self.scale_type, (rows, groups))}
        if how.kind == "float":
            found: dict[str, tuple[str, tuple[int, ...]]] = {
                "weight_packed": ("U8", (outputs, inputs // 2)),
                "weight_scale": ("F8_E4M3" if self._divided else "U8", (outputs, groups)),
            }
            found |= {"weight_global_scale": ("F32", (1,))} if self._divided else {}
            return found | ({INPUTS: ("F32", (1,))} if self.measured else {})
        words = inputs * self.bits // 32
        found = {
            "weight_packed": ("I32", (outputs, words)),
            "weight_scale": (self.scale_type, (outputs, groups)),
            "weight_shape": ("I64", (2,)),
        }
        return found | (
            {} if self.symmetric else {"weight_zero_point": ("I32", (outputs * self.bits // 32, groups))}
        )

    @property
    def measured(self) -> bool:
        """Whether a scale of activations comes from calibration."""
        return self.how.activations.startswith("nvfp4")

    @property
    def _divided(self) -> bool:
        """Whether scales are divided by one of the tensor."""
        return self.how.layout.startswith("nvfp4")

    def stored_type(self, name: str) -> str:
        part = name.rpartition(".")[2]
        return self._layout(BLOCK, BLOCK)[part][0] if part in (*PARTS, INPUTS) else ""

    def called(self, linear: Linear) -> str:
        return self.name

    def packed(self, codes: "Codes | FloatCodes", grid: Grid | None = None) -> dict[str, np.ndarray]:
        """Raw bits, as ``quantize.dtypes.NUMPY``."""
        whole = codes.whole if isinstance(codes, FloatCodes) else 1.0
        return self.packed_rows(codes) | self._once(codes.codes.shape[0], codes.codes.shape[1], whole)

    def packed_once(self, linear: Linear, whole: float) -> dict[str, np.ndarray]:
        """What is stored once of a matrix, beside ``packed_rows`` of all its parts."""
        return self._once(linear.outputs, linear.inputs, whole)

    def _once(self, outputs: int, inputs: int, whole: float) -> dict[str, np.ndarray]:
        if self._divided:
            return {"weight_global_scale": np.array([whole], np.float32)}
        if self.how.packed and self.how.kind == "int":
            return {"weight_shape": np.array([outputs, inputs], np.int64)}
        return {}

    def packed_rows(self, codes: "Codes | FloatCodes") -> dict[str, np.ndarray]:
        """Of some outputs: as ``packed``, of what is stored one output after the other."""
        if isinstance(codes, FloatCodes):
            return self._packed_floats(codes)
        found = {"weight_scale": self._raw_scales(codes.scales)}
        raw = codes.codes.cpu().numpy()
        if not self.how.packed:
            found["weight"] = (raw ^ 0x80).view(np.int8)  # code - 128
            return found
        found["weight_packed"] = pack_rows(raw, self.bits)
        if not self.symmetric:
            found["weight_zero_point"] = pack_bits(codes.zeros.cpu().numpy(), self.bits)
        return found

    def rounded_rows(self, rows: RoundedRows) -> dict[str, np.ndarray]:
        """``packed_rows`` of what the compiled kernel made."""
        found = {"weight_scale": rows.scales}
        if not self.how.packed:
            return found | {"weight": rows.codes}
        found["weight_packed"] = rows.codes.view("<i4")
        if not self.symmetric:
            found["weight_zero_point"] = pack_bits(rows.zeros.astype(np.uint8), self.bits)
        return found

    def _packed_floats(self, codes: FloatCodes) -> dict[str, np.ndarray]:
        import torch

        raw = codes.codes.cpu().numpy()
        if not self.how.packed:
            return {"weight": raw, "weight_scale": self._raw_scales(codes.scales)}
        packed = {"weight_packed": raw[:, 0::2] | raw[:, 1::2] << 4}
        if self._divided:
            scales = codes.scales.to(torch.float8_e4m3fn).view(torch.uint8).cpu().numpy()
            return {**packed, "weight_scale": scales}
        exponents = torch.frexp(codes.scales)[1] - 1 + 127
        return {**packed, "weight_scale": exponents.to(torch.uint8).cpu().numpy()}

    def raw_scale(self, scale: float) -> np.ndarray:
        """(1,), as the file holds scales."""
        import torch

        return self._raw_scales(torch.tensor([scale], dtype=torch.float32))

    def _raw_scales(self, scales: Any) -> np.ndarray:
        import torch

        kind = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[self.scale_type]
        held = scales.to(kind)
        return torch_bytes(held).view(NUMPY[self.scale_type]).reshape(held.shape)

    def unpacked(self, tensors: dict[str, np.ndarray], grid: Grid | None = None) -> np.ndarray:
        types = {part: kind for part, (kind, _) in self._layout(BLOCK, BLOCK).items()}
        return self._unpacked(tensors, types)

    def _unpacked(self, tensors: dict[str, np.ndarray], types: dict[str, str]) -> np.ndarray:
        scale = types["weight_scale"]
        if scale in FLOATS:
            tensors = {**tensors, "weight_scale": to_float32(tensors["weight_scale"], scale)}
        return dequantize(tensors, types, (BLOCK, BLOCK) if self.how.block else None)

    def read_matrix(self, stored: Checkpoint, linear: Linear) -> np.ndarray:
        """With a scale of the whole tensor, rounded to bfloat16, as the library unpacks it: of no consequence
        where that scale is a power of two, as this program writes it."""
        names = {part: name for part in PARTS if (name := f"{linear.name}.{part}") in stored.tensors}
        parts = {part: stored.read(name) for part, name in names.items()}
        values = self._unpacked(parts, {part: stored.tensors[name].dtype for part, name in names.items()})
        if self._divided:
            import torch

            values = torch.from_numpy(values).bfloat16().float().numpy()
        return values

    def quantized(self, stage: Path) -> dict[str, str]:
        """A source's tensor counts once all tensors of all of its matrices are there."""
        there = stored_tensors(stage).tensors
        return {
            source: self.name
            for source, linears in self.by_source.items()
            if all(
                (info := there.get(name)) is not None and (info.dtype, info.shape) == (dtype, shape)
                for linear in linears
                for name, dtype, shape in self.matrix_entries(linear)
            )
        }

    def opener(self, folder: Path) -> str:
        """transformers 5.23 makes room for zero points that are not packed, and refuses those of the
        files."""
        found = super().opener(folder)
        return OWN if found == GPTQMODEL or not self.symmetric else found

    def experts_openers(self, folder: Path) -> tuple[str, ...]:
        if all(linear.module in self.replaced for linear in self.linears):
            return ("vllm", "sglang")
        return tuple(who for who in super().experts_openers(folder) if who != GPTQMODEL)

    def config(self, checkpoint: Checkpoint, meta: dict[str, Any]) -> dict[str, Any]:
        """As llm-compressor writes it; ``meta`` only where a loader of whole tensors must know of them."""
        sources = self.sources(checkpoint)
        found = self.own_config() | ({"meta": {**meta, SOURCES: sources}} if sources else {})
        return dict(sorted(found.items()))

    def own_config(self) -> dict[str, Any]:
        """``ignore`` names modules; loaders take every other linear layer."""
        how = self.how
        head = self.decoder.head.layer if self.decoder and self.decoder.head else "lm_head"
        activations = None
        if how.activations:
            activations = {"symmetric": True, "dynamic": True, **ACTIVATIONS[how.activations]}
        group = {
            "format": how.layout,
            "input_activations": activations,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": self._weights(),
        }
        return {
            "config_groups": {"group_0": group},
            "format": how.layout,
            "global_compression_ratio": None,
            "ignore": [*self.left(), head, *self._beside_patterns()],
            "kv_cache_scheme": dict(KV_FP8) if self.kv_cache else None,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "sparsity_config": {},
            "transform_config": {},
            "version": VERSION,
        }

    def _beside_patterns(self) -> list[str]:
        """Of what is no part of the text model, all that lies in it, whatever loaders put before its name."""
        decoder = self.decoder
        lasts = dict.fromkeys(name.rpartition(".")[2] for name, _ in decoder.beside) if decoder else {}
        return [rf"re:(.*\.)?{re.escape(last)}(\..*)?$" for last in lasts]

    def _weights(self) -> dict[str, Any]:
        how = self.how
        found: dict[str, Any] = {
            "num_bits": how.bits,
            "type": how.kind,
            "symmetric": self.symmetric,
            "group_size": None if how.block or self.group_size < 0 else self.group_size,
            "strategy": "channel" if self.group_size < 0 else "group",
            "dynamic": False,
        }
        if how.block:
            found |= {"strategy": "block", "block_structure": [BLOCK, BLOCK]}
        if self._divided:
            found |= {"strategy": "tensor_group", "scale_dtype": "torch.float8_e4m3fn"}
        elif how.packed and how.kind == "float":
            found["scale_dtype"] = "torch.uint8"
        return found
