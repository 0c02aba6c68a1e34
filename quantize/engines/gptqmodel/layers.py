"""Which models GPTQModel quantizes so that the result loads."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.formats.packed import DENSE_OPENED

#: model types whose small random models went through the engine, verified
#: (tests/integration/methods/test_gptq_awq.py, the long ones)
MODEL_TYPES = DENSE_OPENED
_FUSED = (
    "the engine (GPTQModel 7.6) splits its fused gate_up_proj "
    "and saves it under names that loaders do not look for"
)
_EXPERTS = "the engine (GPTQModel 7.6) saves its experts under names that loaders do not look for"
#: model types that the engine says it takes, and why the result would not load
UNLOADABLE = {"phi3": _FUSED, "glm": _FUSED, "glm4": _FUSED, "mixtral": _EXPERTS, "qwen2_moe": _EXPERTS}
#: the engine searches clipping bounds 64 outputs at a time
AWQ_OUTPUTS = 64
_LAYERS = "the engine (GPTQModel 7.6) cannot run its attention separately to search scales; use gptq-int4"
#: model types whose AWQ the engine does not make, and why
WITHOUT_AWQ = {
    "gemma2": _LAYERS,
    "gemma3_text": "the engine (GPTQModel 7.6) cannot run its layers "
    "separately, as it has two rotary embeddings; use gptq-int4",
    "stablelm": _LAYERS,
    "cohere2": "the engine (GPTQModel 7.6) cannot move scales into its norm; use gptq-int4",
    "starcoder2": "the engine's (GPTQModel 7.6) output produces NaN when it runs; use gptq-int4",
}


def check_model_type(checkpoint: Checkpoint, method: str, excluded: dict[str, str]) -> None:
    """Errors: Unsupported where the engine does not know the model, or ``excluded`` says why not."""
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
