"""Poolside's Laguna: heads counted layer by layer, a gate on what attention gives, experts chosen by sigmoid
and a bias."""

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import (
    ARRAY,
    ENDS,
    F32,
    NORMS,
    QK_NORMS,
    U32,
    UNBIASED,
    Family,
    KVs,
    Rule,
    common_kvs,
)
from quantize.gguf.families.experts import leading, mixture, mixture_kvs, predicting
from quantize.gguf.families.mellum import sliding
from quantize.gguf.families.rope import LOCAL, read_rope


def rotated(h: Hyperparameters) -> int:
    return int(h.head_dim * read_rope(h).partial)


def kvs(h: Hyperparameters) -> KVs:
    kvs = common_kvs(h) | mixture_kvs(h, "moe_routed_scaling_factor")
    kvs |= {
        "attention.head_count": (h.find("num_attention_heads_per_layer") or [h.heads] * h.layers, ARRAY),
        "vocab_size": (h["vocab_size"], U32),
        "expert_shared_feed_forward_length": (h["shared_expert_intermediate_size"], U32),
        "leading_dense_block_count": (leading(h), U32),
        "rope.dimension_count": (rotated(h), U32),
    }
    if any(sliding(h)):
        local = read_rope(h, LOCAL)
        kvs |= {
            "attention.sliding_window": (h["sliding_window"], U32),
            "attention.sliding_window_pattern": (sliding(h), ARRAY),
            "rope.freq_base_swa": (local.theta, F32),
            "rope.dimension_count_swa": (int(h.head_dim * local.partial), U32),
        }
    return kvs


def check(h: Hyperparameters) -> list[Note]:
    for name in ("moe_router_logit_softcapping", "moe_apply_router_weight_on_input"):
        if h.find(name):
            raise Unsupported(f"{h.source}: {name} is {h.find(name)}; llama.cpp's laguna has none")
    if any(sliding(h)) and read_rope(h, LOCAL).kind != "default":
        raise Unsupported(f"{h.source}: stretched rope in sliding layers, which llama.cpp's laguna has not")
    return []


FAMILY = Family(
    architecture="laguna",
    layer=(
        *NORMS,
        *UNBIASED,
        Rule("blk.{i}.attn_gate", "model.layers.{i}.self_attn.g_proj"),
        *QK_NORMS,
        *mixture("experts.e_score_correction_bias", "shared_expert"),
    ),
    ends=ENDS,
    kvs=kvs,
    rotated=rotated,
    defaults={
        "rms_norm_eps": 1e-6, "rope_theta": 500000.0, "max_position_embeddings": 131072, "head_dim": 128,
        "num_key_value_heads": 8, "sliding_window": 512, "num_experts": 256, "num_experts_per_tok": 8,
        "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
        "moe_routed_scaling_factor": 1.0,
    },
    check=check,
    leaves=predicting,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
