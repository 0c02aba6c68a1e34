"""GLM-4: the 2024 models (``Glm``, llama.cpp's chatglm) and those of 2025 (``Glm4``, sandwich norms). gate
and up stay fused."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ATTENTION, ENDS, F32, NORMS, U32, Family, KVs, Rule, common_kvs
from quantize.gguf.families.rope import read_rope, rope_kvs

FUSED_MLP = (
    Rule("blk.{i}.ffn_up", "model.layers.{i}.mlp.gate_up_proj"),
    Rule("blk.{i}.ffn_down", "model.layers.{i}.mlp.down_proj"),
)
DEFAULTS = {
    "max_position_embeddings": 131072, "num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1.5625e-07,
    "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
}  # fmt: skip


def rotated(h: Hyperparameters) -> int:
    return int(h.head_dim * read_rope(h).partial)


def glm4_kvs(h: Hyperparameters) -> KVs:
    return common_kvs(h) | {"rope.dimension_count": (rotated(h), U32)}


def glm_kvs(h: Hyperparameters) -> KVs:
    # llama.cpp's converter looks for the keys of the older remote-code config and falls back to wrong values
    # (context: the hidden size, epsilon: 1e-5, base: 10000); these are the config's own.
    return {
        "context_length": (h["max_position_embeddings"], U32),
        "embedding_length": (h.hidden, U32),
        "feed_forward_length": (h["intermediate_size"], U32),
        "block_count": (h.layers, U32),
        "attention.head_count": (h.heads, U32),
        "attention.head_count_kv": (h.kv_heads, U32),
        "attention.layer_norm_rms_epsilon": (h["rms_norm_eps"], F32),
        "attention.key_length": (h.head_dim, U32),
        "attention.value_length": (h.head_dim, U32),
        "rope.dimension_count": (rotated(h), U32),
    } | rope_kvs(h)


GLM = Family("chatglm", (*NORMS, *ATTENTION, *FUSED_MLP), ENDS, glm_kvs, defaults=DEFAULTS, rotated=rotated)
GLM4 = Family(
    architecture="glm4",
    layer=(
        Rule("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm"),
        Rule("blk.{i}.post_attention_norm", "model.layers.{i}.post_self_attn_layernorm"),
        Rule("blk.{i}.ffn_norm", "model.layers.{i}.post_attention_layernorm"),
        Rule("blk.{i}.post_ffw_norm", "model.layers.{i}.post_mlp_layernorm"),
        *ATTENTION,
        *FUSED_MLP,
    ),
    ends=ENDS,
    kvs=glm4_kvs,
    defaults=DEFAULTS,
    rotated=rotated,
)


def family(checkpoint: Checkpoint) -> Family:
    return GLM4 if checkpoint.architecture == "Glm4ForCausalLM" else GLM
