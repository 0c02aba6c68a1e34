"""Hunyuan 3: q and k normalised by head, experts chosen by sigmoid and a bias, one shared expert."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import (
    BOOL,
    ENDS,
    F32,
    NORMS,
    QK_NORMS,
    U32,
    Family,
    KVs,
    Rule,
    common_kvs,
)
from quantize.gguf.families.experts import MLP, SIGMOID, STACKED, bias, predicting, shared, sparse


def kvs(h: Hyperparameters) -> KVs:
    width = int(h["moe_intermediate_size"])
    return common_kvs(h) | {
        "expert_feed_forward_length": (width, U32),
        "expert_shared_feed_forward_length": (width * int(h["num_shared_experts"]), U32),
        "expert_weights_norm": (True, BOOL),
        "expert_weights_scale": (h["router_scaling_factor"], F32),
        "expert_gating_func": (SIGMOID, U32),
    }


FAMILY = Family(
    architecture="hy_v3",
    layer=(
        *NORMS,
        Rule("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
        Rule("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
        Rule("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
        Rule("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
        *QK_NORMS,
        *MLP,
        Rule("blk.{i}.ffn_gate_inp", "model.layers.{i}.mlp.router.gate", when=sparse),
        bias("expert_bias", ending=""),
        STACKED,
        *shared("shared_mlp"),
    ),
    ends=ENDS,
    kvs=kvs,
    defaults={
        "rms_norm_eps": 1e-5, "rope_theta": 11158840.0, "max_position_embeddings": 131072, "head_dim": 128,
        "num_key_value_heads": 8, "num_experts": 192, "num_experts_per_tok": 8, "num_shared_experts": 1,
        "moe_intermediate_size": 1536, "router_scaling_factor": 2.826,
    },
    leaves=predicting,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
