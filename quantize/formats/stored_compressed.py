"""A folder of compressed-tensors as it lies there, of the schemes that this program writes."""

from pathlib import Path
from typing import Any

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.config import read_config
from quantize.dtypes import FLOATS
from quantize.errors import BadInput
from quantize.formats.compressed_tensors import (
    ACTIVATIONS,
    BLOCK,
    INPUTS,
    KEPT,
    KV_FP8,
    PARTS,
    SCHEMES,
    CtFormat,
)
from quantize.formats.packed import stored_tensors
from quantize.formats.stored import Stored, source_of


def stored_compressed(folder: Path, *, trust_remote_code: bool = False) -> Stored:
    """Errors: BadInput where it is not a folder of compressed-tensors of one of this program's schemes, or
    its matrices are not those of its model; Unsupported where transformers lacks the architecture."""
    config = read_config(folder)
    said = config.get("quantization_config") or {}
    scheme = next((name for name in SCHEMES if _is_scheme(said, name)), None)
    if scheme is None:
        raise BadInput(f"{folder}: is of no scheme of compressed-tensors that this program writes")
    weights = said["config_groups"]["group_0"]["weights"]
    stored = stored_tensors(folder)
    found, scale_type = {}, "BF16"
    for name, info in stored.tensors.items():
        base, _, part = name.rpartition(".")
        if part == "weight_scale" and (shape := _shape(stored, base)) is not None:
            found[base] = shape
            scale_type = info.dtype if info.dtype in FLOATS else scale_type
    own = {f"{base}.{part}" for base in found for part in (*PARTS, INPUTS)}
    kept = said.get("kv_cache_scheme")
    if kept:
        own |= {name for name in stored.tensors if name.rpartition(".")[2] in KEPT}
    tensors = {name: info for name, info in stored.tensors.items() if name not in own}
    checkpoint, decoder, linears = source_of(folder, config, stored, found, tensors, trust_remote_code)
    size = int(weights.get("group_size") or (BLOCK if SCHEMES[scheme].block else -1))
    format = CtFormat(
        SCHEMES[scheme].bits, size, bool(weights.get("symmetric", True)), linears, decoder,
        scheme=scheme, scale_type=scale_type, kv_cache=_is_kv_fp8(kept),
    )  # fmt: skip
    return Stored(folder, checkpoint, format)


def _is_kv_fp8(said: Any) -> bool:
    """Whether a ``kv_cache_scheme`` is that of this program: one scale for all keys of a layer, one for all
    values."""
    return isinstance(said, dict) and all(said.get(key) == value for key, value in KV_FP8.items())


def _is_scheme(said: dict[str, Any], name: str) -> bool:
    """Whether a ``quantization_config`` is that of one scheme, of one group."""
    groups = said.get("config_groups")
    if said.get("quant_method") != "compressed-tensors" or not isinstance(groups, dict) or len(groups) != 1:
        return False
    group, how = groups.get("group_0"), SCHEMES[name]
    weights, activations = (
        group.get(part) if isinstance(group, dict) else None for part in ("weights", "input_activations")
    )
    if not isinstance(weights, dict) or not isinstance(activations, dict | None):
        return False
    wanted, found = ACTIVATIONS.get(how.activations), activations or {}
    same = (activations is None) == (wanted is None) and (
        wanted is None or all(found.get(key) == value for key, value in wanted.items())
    )
    kinds = (weights.get("num_bits"), weights.get("type"), (weights.get("strategy") == "block"))
    return same and said.get("format") == how.layout and kinds == (how.bits, how.kind, how.block)


def _shape(stored: Checkpoint, base: str) -> tuple[int, int] | None:
    """(outputs, inputs) of the matrix ``base``; None where it is not stored as one."""
    whole, packed = stored.tensors.get(f"{base}.weight"), stored.tensors.get(f"{base}.weight_packed")
    if packed is None:
        return (whole.shape[0], whole.shape[1]) if whole is not None and len(whole.shape) == 2 else None
    if packed.dtype == "U8":
        return packed.shape[0], 2 * packed.shape[1]
    if f"{base}.weight_shape" not in stored.tensors:
        return None
    outputs, inputs = (int(size) for size in stored.read(f"{base}.weight_shape"))
    return outputs, inputs
