"""Arcee's Trinity (AFMoE): gated attention that rotates in its sliding layers only, norms before and after,
experts chosen by sigmoid and a bias."""

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import (
    BOOL,
    ENDS,
    F32,
    QK_NORMS,
    U32,
    Family,
    KVs,
    Rule,
    common_kvs,
)
from quantize.gguf.families.experts import MLP, SIGMOID, STACKED, bias, leading, shared, sparse


def kvs(h: Hyperparameters) -> KVs:
    return common_kvs(h) | {
        "expert_gating_func": (SIGMOID, U32),
        "expert_shared_count": (h["num_shared_experts"], U32),
        "expert_feed_forward_length": (h["moe_intermediate_size"], U32),
        "leading_dense_block_count": (leading(h), U32),
        "expert_weights_norm": (True, BOOL),
        "expert_weights_scale": (h["route_scale"], F32),
        "attention.sliding_window": (h["sliding_window"], U32),
        "vocab_size": (h["vocab_size"], U32),
        "rope.dimension_count": (h.head_dim, U32),
    }


def check(h: Hyperparameters) -> list[Note]:
    if not h.find("mup_enabled"):
        raise Unsupported(f"{h.source}: mup_enabled is false; llama.cpp's afmoe always scales embeddings")
    if h.find("route_norm") is False:
        raise Unsupported(f"{h.source}: route_norm is false, which transformers does not compute")
    period = int(h.find("global_attn_every_n_layers") or 4)
    sliding = [kind == "sliding_attention" for kind in h.find("layer_types") or []] or [
        bool((index + 1) % period) for index in range(h.layers)
    ]
    if sliding != [bool((index + 1) % 4) for index in range(h.layers)]:
        raise Unsupported(
            f"{h.source}: layer_types must repeat three sliding layers "
            "and a global one, as llama.cpp's afmoe has built in"
        )
    return []


FAMILY = Family(
    architecture="afmoe",
    layer=(
        Rule("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm"),
        Rule("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
        Rule("blk.{i}.ffn_norm", "model.layers.{i}.pre_mlp_layernorm"),
        Rule("blk.{i}.post_ffw_norm", "model.layers.{i}.post_mlp_layernorm"),
        Rule("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
        Rule("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
        Rule("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
        Rule("blk.{i}.attn_gate", "model.layers.{i}.self_attn.gate_proj"),
        Rule("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
        *QK_NORMS,
        *MLP,
        Rule("blk.{i}.ffn_gate_inp", "model.layers.{i}.mlp.router.gate", when=sparse),
        bias("expert_bias"),
        STACKED,
        *shared("shared_experts"),
    ),
    ends=ENDS,
    kvs=kvs,
    defaults={
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 16384, "head_dim": 128,
        "sliding_window": 1024, "num_dense_layers": 1, "num_experts": 64, "num_experts_per_tok": 6,
        "num_shared_experts": 2, "moe_intermediate_size": 1408, "route_scale": 1.0, "mup_enabled": False,
    },
    check=check,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
