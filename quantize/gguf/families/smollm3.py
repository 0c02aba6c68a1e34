"""SmolLM3: Llama without rotation in every fourth layer."""

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ENDS, MLP, NORMS, U32, Family, KVs, common_kvs
from quantize.gguf.families.llama import DEFAULTS, PERMUTED_ATTENTION
from quantize.gguf.families.qwen import window_note


def kvs(h: Hyperparameters) -> KVs:
    return common_kvs(h) | {"vocab_size": (h["vocab_size"], U32), "rope.dimension_count": (h.head_dim, U32)}


def check(h: Hyperparameters) -> list[Note]:
    usual = [int((index + 1) % 4 != 0) for index in range(h.layers)]
    rotated = h.find("no_rope_layers") or [
        int((i + 1) % (h.find("no_rope_layer_interval") or 4) != 0) for i in range(h.layers)
    ]
    if [int(bool(layer)) for layer in rotated] != usual:
        raise Unsupported(
            f"{h.source}: no_rope_layers must be every fourth layer, as llama.cpp's smollm3 has built in"
        )
    return window_note(h)


FAMILY = Family(
    architecture="smollm3",
    layer=(*NORMS, *PERMUTED_ATTENTION, *MLP),
    ends=ENDS,
    kvs=kvs,
    defaults={
        **DEFAULTS,
        "max_position_embeddings": 32768,
        "rope_theta": 2e6,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    check=check,
)


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
