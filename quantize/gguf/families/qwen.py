"""Qwen 2 and 2.5 (biases on q, k, v), Qwen 3 (norms on q and k). llama.cpp rotates them as transformers
does."""

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ATTENTION, ENDS, MLP, NORMS, QK_NORMS, Family, KVs, common_kvs

DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
}


def window_note(h: Hyperparameters) -> list[Note]:
    types = h.find("layer_types")
    sliding = "sliding_attention" in types if types else bool(h.find("use_sliding_window"))
    if not sliding:
        return []
    why = "its Qwen architectures have no sliding window; logits agree up to that length"
    return [
        Note(
            tensor="*",
            what=f"sliding window of {h.find('sliding_window')} tokens not kept by llama.cpp",
            why=why,
        )
    ]


def kvs(h: Hyperparameters) -> KVs:
    return common_kvs(h)


QWEN2 = Family("qwen2", (*NORMS, *ATTENTION, *MLP), ENDS, kvs, defaults=DEFAULTS, check=window_note)
QWEN3 = Family(
    "qwen3",
    (*NORMS, *ATTENTION, *QK_NORMS, *MLP),
    ENDS,
    kvs,
    defaults={**DEFAULTS, "head_dim": 128},
    check=window_note,
)


def family(checkpoint: Checkpoint) -> Family:
    return {
        "Qwen2ForCausalLM": QWEN2,
        "Qwen2Model": QWEN2,
        "Qwen3ForCausalLM": QWEN3,
        "Qwen3Model": QWEN3,
    }[checkpoint.architecture]
