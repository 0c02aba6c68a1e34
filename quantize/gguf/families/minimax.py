"""MiniMax-M2: a part of each head rotated, q and k normalised whole, experts chosen by sigmoid and a bias."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import (
    ENDS,
    NORMS,
    QK_NORMS,
    U32,
    Family,
    KVs,
    Rule,
    common_kvs,
)
from quantize.gguf.families.mixtral import stack
from quantize.gguf.families.rope import read_rope

SIGMOID = 2
EXPERT = "model.layers.{i}.block_sparse_moe.experts.{x}."


def rotated(h: Hyperparameters) -> int:
    return int(h.find("rotary_dim") or h.head_dim * read_rope(h).partial)


def kvs(h: Hyperparameters) -> KVs:
    h.config.pop("scoring_func", None)
    return common_kvs(h) | {
        "expert_gating_func": (SIGMOID, U32),
        "expert_feed_forward_length": (h["intermediate_size"], U32),
        "rope.dimension_count": (rotated(h), U32),
    }


FAMILY = Family(
    architecture="minimax-m2",
    layer=(
        *NORMS,
        Rule("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
        Rule("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
        Rule("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
        Rule("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
        *QK_NORMS,
        Rule("blk.{i}.ffn_gate_inp", "model.layers.{i}.block_sparse_moe.gate"),
        Rule(
            "blk.{i}.exp_probs_b",
            "model.layers.{i}.block_sparse_moe.e_score_correction_bias",
            suffixes=("",),
        ending=".bias",
        ),
        Rule("blk.{i}.ffn_gate_exps", EXPERT + "w1", stack),
        Rule("blk.{i}.ffn_down_exps", EXPERT + "w2", stack),
        Rule("blk.{i}.ffn_up_exps", EXPERT + "w3", stack),
    ),
    ends=ENDS,
    kvs=kvs,
    rotated=rotated,
    defaults={
        "rms_norm_eps": 1e-6, "rope_theta": 5e6, "max_position_embeddings": 196608, "head_dim": 128,
        "num_key_value_heads": 8, "num_local_experts": 256, "num_experts_per_tok": 8,
    },
    head="required",
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
