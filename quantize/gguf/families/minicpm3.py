"""MiniCPM 3: latent attention, decompressed; its scaling factors are built into llama.cpp."""

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ENDS, NORMS, U32, Family, KVs, Rule, common_kvs
from quantize.gguf.families.rope import FACTORS

ATTENTION = "model.layers.{i}.self_attn."
SCALES = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256}


def rotated(h: Hyperparameters) -> int:
    return int(h["qk_rope_head_dim"])


def kvs(h: Hyperparameters) -> KVs:
    return common_kvs(h) | {
        "vocab_size": (h["vocab_size"], U32),
        "attention.q_lora_rank": (h["q_lora_rank"], U32),
        "attention.kv_lora_rank": (h["kv_lora_rank"], U32),
        "attention.key_length": (h["qk_nope_head_dim"] + rotated(h), U32),
        "attention.value_length": (h["v_head_dim"], U32),
        "rope.dimension_count": (rotated(h), U32),
    }


def check(h: Hyperparameters) -> list[Note]:
    for name, built_in in SCALES.items():
        if h[name] != built_in:
            raise Unsupported(
                f"{h.source}: {name} {h[name]}, but llama.cpp's minicpm3 computes with {built_in}"
            )
    return []


FAMILY = Family(
    architecture="minicpm3",
    layer=(
        *NORMS,
        Rule("blk.{i}.attn_q_a", ATTENTION + "q_a_proj"),
        Rule("blk.{i}.attn_q_a_norm", ATTENTION + "q_a_layernorm"),
        Rule("blk.{i}.attn_q_b", ATTENTION + "q_b_proj"),
        Rule("blk.{i}.attn_kv_a_mqa", ATTENTION + "kv_a_proj_with_mqa"),
        Rule("blk.{i}.attn_kv_a_norm", ATTENTION + "kv_a_layernorm"),
        Rule("blk.{i}.attn_kv_b", ATTENTION + "kv_b_proj"),
        Rule("blk.{i}.attn_output", ATTENTION + "o_proj"),
        Rule("blk.{i}.ffn_gate", "model.layers.{i}.mlp.gate_proj"),
        Rule("blk.{i}.ffn_up", "model.layers.{i}.mlp.up_proj"),
        Rule("blk.{i}.ffn_down", "model.layers.{i}.mlp.down_proj"),
    ),
    ends=ENDS,
    kvs=kvs,
    rope=frozenset((FACTORS,)),
    rotated=rotated,
    defaults={
        **SCALES, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 32768,
        "q_lora_rank": 768, "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32,
        "v_head_dim": 64, "tie_word_embeddings": True,
    },
    check=check,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
