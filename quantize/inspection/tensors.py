"""The weights that are stored, by their names in the model: the type of each, how many weights it has, and
what it takes on disk with its scales."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantize.checkpoint.checkpoint import BUFFERS
from quantize.checkpoint.safetensors_header import StoredTensor, TensorInfo
from quantize.dtypes import BITS
from quantize.gguf.container.reader import GgufFile

PARTS = ("embedding", "attention", "mlp", "experts", "head", "norms", "other")


@dataclass(frozen=True)
class Weight:
    """``shape``: as stored. ``weights``: how many, None where the packing is not known. ``size_bytes``: with
    scales and whatever else belongs to it."""

    name: str
    shape: tuple[int, ...]
    type: str
    weights: int | None
    size_bytes: int
    part: str


#: endings of what belongs to a weight -> endings that the weight itself may have
_BELONGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    *((ending, (".qweight", ".weight_packed", ".weight")) for ending in (
        ".qzeros", ".scales", ".g_idx", ".biases", ".SCB", ".weight_format", ".weight_scale",
        ".weight_scale_inv", ".weight_scale_2", ".weight_zero_point", ".weight_shape", ".weight_g_idx",
        ".weight_global_scale", ".input_scale", ".input_global_scale", ".input_zero_point", ".output_scale",
    )),
    *((ending, ("",)) for ending in (
        ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".quant_state.bitsandbytes__nf4",
        ".quant_state.bitsandbytes__fp4", "_scale_inv", "_scale",
    )),
    *((ending, ("._data", "._data._data")) for ending in ("._scale", "._shift")),
    *((ending, ("._weight_qdata",)) for ending in ("._weight_scale", "._weight_zero_point")),
    *((ending, (".weight._data", ".weight._data._data")) for ending in (".input_scale", ".output_scale")),
    ("_scales", ("_blocks",)),
)  # fmt: skip
#: endings of a packed weight -> what its name ends in otherwise
_PACKED = (
    (".qweight", ".weight"),
    (".weight_packed", ".weight"),
    ("._data._data", ""),
    ("._data", ""),
    ("._weight_qdata", ".weight"),
    ("_blocks", ""),
)
_GGUF_PARTS = (
    (r"(token|position)_embd|token_types|per_layer_token_embd", "embedding"),
    (r"output\.", "head"),
    (r".*(_exps|_shexp|ffn_gate_inp|exp_probs)", "experts"),
    (r".*norm", "norms"),
    (r".*(attn|ssm|time_mix|shortconv)", "attention"),
    (r".*(ffn|channel_mix)", "mlp"),
)
_HF_PARTS = (
    (r"(.*\.)?(vision|visual|audio|multi_modal|mm_|image_newline)", "other"),
    (r"(.*\.)?(embed_tokens|embed_in|wte|wpe|word_embeddings|tok_embeddings|embeddings|embed_tokens_per_layer)"
     r"[\w.]*", "embedding"),
    (r"(.*\.)?(lm_head|embed_out)\.|output\.", "head"),
    (r".*(experts?|block_sparse_moe|router|mlp\.gate\.|shared_mlp)", "experts"),
    (r"(.*\.)?(\w*norm\w*|ln_?\w*)(\.\w+)?$", "norms"),  # not what lies in DBRX's norm_attn_norm
    (r".*(attn|attention|mixer|mamba|ssm|conv|[qkvo]_proj|qkv)", "attention"),
    (r".*(mlp|ffn|feed_forward|fc\d?|gate_proj|up_proj|down_proj|dense_)", "mlp"),
)  # fmt: skip


def part_of(name: str, gguf: bool = False) -> str:
    """Which of ``PARTS`` a tensor of that name is of: state-space and convolution layers count as
    attention, routers and shared experts as experts."""
    for pattern, part in _GGUF_PARTS if gguf else _HF_PARTS:
        if re.match(rf"(?:blk\.\d+\.)?{pattern}" if gguf else pattern, name):
            return part
    return "other"


def gguf_weights(file: GgufFile) -> list[Weight]:
    found = []
    for name, tensor in file.tensors.items():
        count = 1
        for axis in tensor.shape:
            count *= axis
        part = part_of(name, gguf=True)
        found.append(Weight(name, tensor.shape, tensor.kind.name, count, tensor.size_bytes, part))
    return found


def folder_weights(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> list[Weight]:
    """Of a folder's safetensors, whatever packed them. A part of a weight counts with it; buffers are left
    out."""
    extras: dict[str, list[TensorInfo]] = {}
    for name, info in tensors.items():
        if owner := owner_of(name, tensors):
            extras.setdefault(owner, []).append(info)
    found = []
    for name, info in tensors.items():
        if name.endswith(BUFFERS) or owner_of(name, tensors):
            continue
        beside = {extra.name: extra for extra in extras.get(name, ())}
        plain = _plain(name, beside)
        kind, count = _kind(info, beside, config)
        size = info.size_bytes + sum(extra.size_bytes for extra in beside.values())
        found.append(Weight(plain, info.shape, kind, count, size, part_of(plain)))
    return found


def owner_of(name: str, tensors: Mapping[str, Any]) -> str:
    """The tensor that this one is the scales, zero points or codebook of; "" where it is a weight itself."""
    for ending, endings in _BELONGS:
        if name.endswith(ending):
            base = name.removesuffix(ending)
            for other in endings:
                if base + other in tensors and base + other != name:
                    return base + other
    return ""


def _plain(name: str, beside: Mapping[str, TensorInfo]) -> str:
    for ending, usual in _PACKED:
        if name.endswith(ending) and (beside or ending == ".qweight"):
            return name.removesuffix(ending) + usual
    return name


def _kind(
    info: TensorInfo, beside: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> tuple[str, int | None]:
    """What its weights are stored as, and how many there are."""
    name, count = info.name, info.parameters
    if name.endswith(".qweight"):
        return _packed_integers(info, beside)
    if name.endswith(".weight_packed"):
        bits = 4 if info.dtype == "U8" else _compressed_bits(config)
        count = count * BITS[info.dtype] // bits
        scale = beside.get(f"{name.removesuffix('_packed')}_scale")
        grouped = scale is not None and len(scale.shape) > 1 and scale.shape[-1] > 1
        group = f" g{count // scale.parameters}" if scale is not None and grouped else ""
        return ("fp4" if info.dtype == "U8" else f"int{bits}") + group, count
    if name.endswith("._data._data"):
        scales = next((each for key, each in beside.items() if key.endswith("._scale")), None)
        if scales is None or len(info.shape) != 2:
            return info.dtype, None
        bits = 4 if scales.parameters <= 2 * info.shape[0] else 2
        return f"int{bits} g{info.shape[1]}", scales.parameters * info.shape[1]
    if name.endswith("._data"):
        return {"I8": "int8"}.get(info.dtype, info.dtype), count
    if name.endswith("._weight_qdata") and info.dtype == "I8":
        scales = beside.get(f"{name.removesuffix('qdata')}scale")
        groups = scales.shape[-1] if scales is not None and len(scales.shape) == 2 else 1
        return "int8" + (f" g{info.shape[-1] // groups}" if groups > 1 else ""), count
    if name.endswith("_blocks") and info.dtype == "U8" and beside:
        return "mxfp4", 2 * count
    if info.dtype == "U8" and f"{name}.absmax" in beside:
        kind = "fp4" if any(key.endswith("__fp4") for key in beside) else "nf4"
        double = " double" if f"{name}.nested_absmax" in beside else ""
        return kind + double, 2 * count
    base = name.removesuffix("weight")
    if info.dtype == "I8" and f"{base}SCB" in beside:
        return "int8", count
    if info.dtype == "U32" and f"{base}scales" in beside:  # MLX: a word holds the codes of one row
        bits = _whole((config.get("quantization") or {}).get("bits"), 4)
        return f"int{bits}", count * 32 // bits
    if info.dtype.startswith("F8_") and beside:
        return info.dtype + (" blocks" if any("scale_inv" in key for key in beside) else ""), count
    if info.dtype == "I8" and beside:
        return "int8", count
    if info.dtype.startswith(("I", "U")) and count > 1:
        return info.dtype, None
    return info.dtype, count


def _packed_integers(info: TensorInfo, beside: Mapping[str, TensorInfo]) -> tuple[str, int | None]:
    """GPTQ and AWQ, whose shapes say what they hold: zero points have as many words a group as bits need."""
    base = info.name.removesuffix("qweight")
    zeros, scales = beside.get(f"{base}qzeros"), beside.get(f"{base}scales")
    shaped = all(each is not None and len(each.shape) == 2 for each in (info, zeros, scales))
    if not shaped or zeros is None or scales is None or 0 in scales.shape:
        return info.dtype, None
    groups, outputs = scales.shape
    bits, rest = divmod(zeros.shape[1] * 32, outputs)
    if rest or not 1 <= bits <= 8:
        return info.dtype, None
    count = info.parameters * 32 // bits
    size = count // outputs // groups
    return f"int{bits}" + (f" g{size}" if groups > 1 else " per channel"), count


def _compressed_bits(config: Mapping[str, Any]) -> int:
    said = config.get("quantization_config") or config.get("compression_config") or {}
    groups = said.get("config_groups") if isinstance(said, dict) else None
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            return _whole(weights.get("num_bits"), 4)
    return 4


def _whole(value: Any, default: int) -> int:
    return value if type(value) is int and 1 <= value <= 32 else default
