"""OLMo 2 and 3: norms after attention and MLP only, q and k normalised whole. OLMo 3 has sliding windows, and
stretches the rotation of its global layers only."""

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import (
    ARRAY,
    ATTENTION,
    ENDS,
    MLP,
    QK_NORMS,
    U32,
    Family,
    KVs,
    Rule,
    common_kvs,
)
from quantize.gguf.families.gemma import layer_types
from quantize.gguf.families.rope import LOCAL, read_rope


def kvs(h: Hyperparameters) -> KVs:
    return common_kvs(h)


def kvs3(h: Hyperparameters) -> KVs:
    return common_kvs(h) | {
        "attention.sliding_window": (h["sliding_window"], U32),
        "attention.sliding_window_pattern": (layer_types(h, 4), ARRAY),
    }


def check3(h: Hyperparameters) -> list[Note]:
    local, everywhere = read_rope(h, LOCAL), read_rope(h)
    if local.kind != "default" or local.theta != everywhere.theta:
        raise Unsupported(
            f"{h.source}: rope of type {local.kind!r} with base {local.theta:g} in sliding layers; "
            f"llama.cpp's olmo2 rotates them plainly, with the base of the others ({everywhere.theta:g})"
        )
    return []


LAYER = (
    *ATTENTION,
    *QK_NORMS,
    Rule("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
    Rule("blk.{i}.post_ffw_norm", "model.layers.{i}.post_feedforward_layernorm"),
    *MLP,
)
DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5}
OLMO2 = Family(
    architecture="olmo2",
    layer=LAYER,
    ends=ENDS,
    kvs=kvs,
    defaults={**DEFAULTS, "rope_theta": 10000.0},
    head="required",
)
OLMO3 = Family(
    architecture="olmo2",
    layer=LAYER,
    ends=ENDS,
    kvs=kvs3,
    defaults={**DEFAULTS, "rope_theta": 500000.0, "sliding_window": 4096},
    check=check3,
    head="required",
)


def family(checkpoint: Checkpoint) -> Family:
    return OLMO3 if checkpoint.architecture == "Olmo3ForCausalLM" else OLMO2
