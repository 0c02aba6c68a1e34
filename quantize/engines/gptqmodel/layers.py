"""Which tensors GPTQModel quantizes, from headers only, and which shapes its formats can hold."""

import re
from collections.abc import Iterable
from typing import Any

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint, TensorInfo
from quantize.dtypes import FLOATS
from quantize.errors import Unsupported

#: model types whose small random models went through the engine, verified
#: (tests/integration/methods/test_gptq_awq.py, the long ones)
MODEL_TYPES = frozenset(
    {
        "cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "phi",
        "qwen2", "qwen3",
        "qwen3_moe", "smollm3", "stablelm", "starcoder2",
    }
)  # fmt: skip
_FUSED = (
    "the engine (GPTQModel 7.6) splits its fused gate_up_proj "
    "and saves it under names that loaders do not look for"
)
_EXPERTS = "the engine (GPTQModel 7.6) saves its experts under names that loaders do not look for"
#: model types that the engine says it takes, and why the result would not load
UNLOADABLE = {"phi3": _FUSED, "glm": _FUSED, "glm4": _FUSED, "mixtral": _EXPERTS, "qwen2_moe": _EXPERTS}
#: two-dimensional weights of decoder layers that stay as they are: they choose experts
ROUTERS = re.compile(r"\.(mlp|block_sparse_moe)\.(gate|router|shared_expert_gate)\.weight$")
DECODER_LAYER = re.compile(r"(^|\.)layers\.\d+\.")
GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)


def whole(value: Any) -> Any:
    """Text of a whole number -> int, so that a parameter with a list of allowed numbers can be spelled on the
    command line."""
    return int(value) if isinstance(value, str) and value.strip().lstrip("-").isdigit() else value


def quantizable(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """The weights (out, in) that the engine quantizes: every linear of the decoder layers, routers
    excepted."""
    return {
        name: info
        for name, info in checkpoint.tensors.items()
        if name.endswith(".weight")
        and len(info.shape) == 2
        and info.dtype in FLOATS
        and DECODER_LAYER.search(name)
        and not ROUTERS.search(name)
    }


def check_model_type(checkpoint: Checkpoint, method: str, excluded: dict[str, str]) -> None:
    """Errors: Unsupported where the engine does not know the model, or ``excluded`` says why not; or nothing
    is quantizable."""
    kind = checkpoint.model_type
    if reason := excluded.get(kind) or UNLOADABLE.get(kind):
        raise Unsupported(
            f"{checkpoint.source}: {method} does not support "
            f"{checkpoint.architecture}: {reason}; try a gguf, quanto or bnb recipe"
        )
    if kind not in MODEL_TYPES:
        raise Unsupported(
            f"{checkpoint.source}: {method} does not support model_type {kind!r}; it "
            f"supports {', '.join(sorted(MODEL_TYPES))}; try a gguf, quanto or bnb recipe"
        )
    if not quantizable(checkpoint):
        raise Unsupported(
            f"{checkpoint.source}: has no two-dimensional weight in "
            f"a decoder layer, which is all that {method} quantizes"
        )


def check_shapes(
    checkpoint: Checkpoint,
    preset: str,
    group_size: int,
    group_sizes: Iterable[int],
    in_multiple: int,
    out_multiple: int,
) -> None:
    """Errors: Unsupported naming the first weight that does not divide, and the spelling that would work, if
    one does."""
    weights = quantizable(checkpoint)
    for name, info in weights.items():
        outputs, inputs = info.shape
        for size, multiple, side in ((inputs, in_multiple, "inputs"), (outputs, out_multiple, "outputs")):
            if size % multiple:
                raise Unsupported(
                    f"{checkpoint.source}: {name} has {size} {side}, and {preset} "
                    f"needs a multiple of {multiple}; try a gguf, quanto or bnb recipe"
                )
    for name, info in weights.items():
        if group_size > 0 and info.shape[1] % group_size:
            fitting = [
                size for size in group_sizes if all(other.shape[1] % size == 0 for other in weights.values())
            ]
            base = preset.partition(":")[0]
            spellings = [f"{base}:group_size={size}" for size in sorted(fitting, reverse=True)[:2]] + [
                f"{base}:group_size=-1"
            ]
            raise Unsupported(
                f"{checkpoint.source}: {name} has {info.shape[1]} inputs, which "
                f"groups of {group_size} do not divide; use {' or '.join(spellings)}"
            )


def kept_notes(checkpoint: Checkpoint) -> list[Note]:
    """One note for every matrix that stays in the source's dtype."""
    notes = []
    quantized = quantizable(checkpoint)
    for name, info in checkpoint.tensors.items():
        if len(info.shape) < 2 or name in quantized:
            continue
        if ROUTERS.search(name):
            why = "it chooses experts: rounding it would change which ones run"
        elif "embed" in name and checkpoint.config.get("tie_word_embeddings"):
            why = (
                "embedding and output head are one tensor here, "
                "and loaders of this format expect both unquantized"
            )
        else:
            why = "loaders of this format expect embedding and output head unquantized"
        notes.append(Note(tensor=name, what=f"kept in {info.dtype}", why=why))
    return notes
