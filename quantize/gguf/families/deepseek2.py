"""DeepSeek V2 and V2-Lite: latent attention (its key-value projection split and the key half transposed),
experts stacked."""

import math

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import (
    BOOL,
    ENDS,
    F32,
    MLP,
    NORMS,
    U32,
    Family,
    KVs,
    OneOf,
    Rule,
    common_kvs,
)
from quantize.gguf.families.operations import Operation, Part, SwapAxes
from quantize.gguf.families.qwen_moe import EXPERTS, ROUTER
from quantize.gguf.families.rope import growth, read_rope


def dense(h: Hyperparameters, layer: int) -> bool:
    return not h.find("n_routed_experts") or layer < h["first_k_dense_replace"]


def sparse(h: Hyperparameters, layer: int) -> bool:
    return not dense(h, layer)


def low_rank_queries(h: Hyperparameters, layer: int) -> bool:
    return h.find("q_lora_rank") is not None


def full_queries(h: Hyperparameters, layer: int) -> bool:
    return not low_rank_queries(h, layer)


def key_half(h: Hyperparameters) -> Operation:
    nope, value = int(h["qk_nope_head_dim"]), int(h["v_head_dim"])
    return Part((h.heads, nope + value), 1, 0, nope, SwapAxes(), keep=True)


def value_half(h: Hyperparameters) -> Operation:
    nope, value = int(h["qk_nope_head_dim"]), int(h["v_head_dim"])
    return Part((h.heads, nope + value), 1, nope, nope + value, keep=True)


def in_layers(rules: OneOf) -> OneOf:
    return rules.where(sparse)


ATTENTION = "model.layers.{i}.self_attn."
SHARED = "model.layers.{i}.mlp.shared_experts."
#: dense layers first, then experts one by one or fused, and one wide shared expert
SPARSE: tuple[Rule | OneOf, ...] = (
    *(Rule(rule.target, rule.source, when=dense) for rule in MLP),
    Rule(ROUTER.target, ROUTER.source, when=sparse),
    in_layers(EXPERTS),
    Rule("blk.{i}.ffn_gate_shexp", SHARED + "gate_proj", when=sparse),
    Rule("blk.{i}.ffn_up_shexp", SHARED + "up_proj", when=sparse),
    Rule("blk.{i}.ffn_down_shexp", SHARED + "down_proj", when=sparse),
)
LAYER: tuple[Rule | OneOf, ...] = (
    *NORMS,
    Rule("blk.{i}.attn_q", ATTENTION + "q_proj", when=full_queries),
    Rule("blk.{i}.attn_q_a", ATTENTION + "q_a_proj", when=low_rank_queries),
    Rule("blk.{i}.attn_q_a_norm", ATTENTION + "q_a_layernorm", when=low_rank_queries),
    Rule("blk.{i}.attn_q_b", ATTENTION + "q_b_proj", when=low_rank_queries),
    Rule("blk.{i}.attn_kv_a_mqa", ATTENTION + "kv_a_proj_with_mqa"),
    Rule("blk.{i}.attn_kv_a_norm", ATTENTION + "kv_a_layernorm"),
    Rule("blk.{i}.attn_k_b", ATTENTION + "kv_b_proj", key_half),
    Rule("blk.{i}.attn_v_b", ATTENTION + "kv_b_proj", value_half),
    Rule("blk.{i}.attn_output", ATTENTION + "o_proj"),
    *SPARSE,
)


def rotated(h: Hyperparameters) -> int:
    return int(h["qk_rope_head_dim"])


def kvs(h: Hyperparameters) -> KVs:
    rank = int(h["kv_lora_rank"])
    kvs = common_kvs(h) | {
        "attention.head_count_kv": (1, U32),  # the latent is one key-value head for all queries
        "leading_dense_block_count": (
            h["first_k_dense_replace"] if h.find("n_routed_experts") else h.layers,
            U32,
        ),
        "vocab_size": (h["vocab_size"], U32),
    }
    if (queries := h.find("q_lora_rank")) is not None:
        kvs["attention.q_lora_rank"] = (queries, U32)
    elif h.layers not in (
        26,
        27,
    ):  # tells llama.cpp that a model has none; other models need the key
        kvs["attention.q_lora_rank"] = (0, U32)
    kvs |= {
        "attention.kv_lora_rank": (rank, U32),
        "attention.key_length": (rank + rotated(h), U32),
        "attention.value_length": (rank, U32),
        "attention.key_length_mla": (h["qk_nope_head_dim"] + rotated(h), U32),
        "attention.value_length_mla": (h["v_head_dim"], U32),
        "expert_feed_forward_length": (h.need("moe_intermediate_size", "intermediate_size"), U32),
        "expert_shared_count": (h.find("n_shared_experts") or 0, U32),
    }
    if (scale := h.find("routed_scaling_factor")) is not None:
        kvs["expert_weights_scale"] = (scale, F32)
    if h.find("norm_topk_prob"):
        kvs["expert_weights_norm"] = (True, BOOL)
    kvs["rope.dimension_count"] = (rotated(h), U32)
    return kvs | yarn_kvs(h)


def yarn_kvs(h: Hyperparameters) -> KVs:
    """transformers scales cos and sin by A and the scores by B (``yarn_apply_mscale``, 1 without
    mscale_all_dim), llama.cpp by attn_factor, and the scores by (attn_factor * (1 + log_multiplier * ln
    factor)) ** 2."""
    rope = read_rope(h)
    if rope.kind != "yarn" or rope.factor <= 1:
        return {}
    all_dim = float(rope.own.get("mscale_all_dim") or 0)
    multiplier = 0.1 * all_dim
    if rope.attention != 1:
        multiplier = (growth(rope.factor, all_dim) / rope.attention - 1) / math.log(rope.factor)
    if abs(multiplier) < 1e-9:  # where it is zero, llama.cpp multiplies by YaRN's usual factor, as elsewhere
        return {}
    return {
        "rope.scaling.attn_factor": (rope.attention, F32),
        "rope.scaling.yarn_log_multiplier": (multiplier, F32),
    }


def check(h: Hyperparameters) -> list[Note]:
    if read_rope(h).kind == "linear":
        raise Unsupported(
            f"{h.source}: linear rope scaling, which llama.cpp's deepseek2 would also apply to the scores"
        )
    if h.find("topk_method") == "group_limited_greedy" and (h.find("n_group") or 1) > 1:
        why = "llama.cpp ranks groups of experts by the sum of their two best, this model by the best"
        return [Note(tensor="*", what="choice of expert groups approximated", why=why)]
    return []


FAMILY = Family(
    architecture="deepseek2",
    layer=LAYER,
    ends=ENDS,
    kvs=kvs,
    rotated=rotated,
    defaults={
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 2048,
        "first_k_dense_replace": 0,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "routed_scaling_factor": 1.0,
        "n_shared_experts": 2,
    },
    check=check,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
