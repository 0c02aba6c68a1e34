"""Qwen 2 and 2.5 (biases on q, k, v), Qwen 3 (norms on q and k), and the text models of Qwen 2.5 and 3 VL.
 llama.cpp rotates them as transformers does; of the three positions that a VL model has, those of a text
are one."""

from dataclasses import replace

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import (
    ARRAY,
    ATTENTION,
    ENDS,
    MLP,
    NORMS,
    QK_NORMS,
    U32,
    Family,
    KVs,
    common_kvs,
)
from quantize.gguf.families.rope import read_rope

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


def sections(h: Hyperparameters, default: tuple[int, ...]) -> KVs:
    """How many of the rotated pairs follow each of the positions in time, height and width."""
    given = list(read_rope(h).own.get("mrope_section") or default)
    return {"rope.dimension_sections": (given + [0] * (4 - len(given)), ARRAY)}


def qwen2vl_kvs(h: Hyperparameters) -> KVs:
    return common_kvs(h) | sections(h, (16, 24, 24))


def qwen2vl_check(h: Hyperparameters) -> list[Note]:
    why = "its qwen2vl divides by the plain mean square, which matters where rows are near zero"
    what = f"rms_norm_eps {h['rms_norm_eps']} not used by llama.cpp"
    return [Note(tensor="*", what=what, why=why), *window_note(h)]


def qwen3vl_kvs(h: Hyperparameters) -> KVs:
    vision = h.config.get("vision_config") or {}
    deep = (len(vision.get("deepstack_visual_indexes", DEEPSTACK)), U32)
    return common_kvs(h) | sections(h, (24, 20, 20)) | {"n_deepstack_layers": deep}


#: layers of the vision tower whose features go into as many of the text model, where the config is silent
DEEPSTACK = (8, 16, 24)


QWEN2 = Family("qwen2", (*NORMS, *ATTENTION, *MLP), ENDS, kvs, defaults=DEFAULTS, check=window_note)
QWEN3 = Family(
    "qwen3",
    (*NORMS, *ATTENTION, *QK_NORMS, *MLP),
    ENDS,
    kvs,
    defaults={**DEFAULTS, "head_dim": 128},
    check=window_note,
)

QWEN2_VL = replace(
    QWEN2,
    architecture="qwen2vl",
    kvs=qwen2vl_kvs,
    defaults={**DEFAULTS, "rms_norm_eps": 1e-5, "num_key_value_heads": 8, "rope_theta": 1e6},
    check=qwen2vl_check,
    multimodal=True,
)
QWEN3_VL = replace(
    QWEN3,
    architecture="qwen3vl",
    kvs=qwen3vl_kvs,
    defaults={**DEFAULTS, "head_dim": 128, "max_position_embeddings": 128000, "rope_theta": 500000.0},
    multimodal=True,
)


def family(checkpoint: Checkpoint) -> Family:
    return {
        "Qwen2ForCausalLM": QWEN2,
        "Qwen2Model": QWEN2,
        "Qwen2_5_VLForConditionalGeneration": QWEN2_VL,
        "Qwen3ForCausalLM": QWEN3,
        "Qwen3Model": QWEN3,
        "Qwen3VLForConditionalGeneration": QWEN3_VL,
    }[checkpoint.architecture]
