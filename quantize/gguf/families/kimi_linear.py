"""Kimi Linear: layers of Kimi's delta attention (a gated delta net with a decay for each channel) and of
DeepSeek's latent attention without rotation, DeepSeek-V3's mixture."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ARRAY, ENDS, F32, NORMS, U32, Family, KVs, OneOf, Rule, common_kvs
from quantize.gguf.families.deepseek2 import key_half, value_half
from quantize.gguf.families.experts import SIGMOID, dense, leading, sparse
from quantize.gguf.families.mixtral import stack
from quantize.gguf.families.operations import Operation
from quantize.gguf.families.states import NegativeExp

ATTENTION = "model.layers.{i}.self_attn."
MLP = "model.layers.{i}.block_sparse_moe."
EPSILON = 1e-6  # of the norms of latent rows, and of the lengths of queries and keys, in transformers


def _linear(h: Hyperparameters) -> Mapping[str, Any]:
    """Of the delta layers, in the published spelling."""
    return h.config.get("linear_attn_config") or {}


def full_layers(h: Hyperparameters) -> list[bool]:
    """True where a layer has latent attention."""
    if numbers := _linear(h).get("full_attn_layers"):
        return [index + 1 in numbers for index in range(h.layers)]
    if types := h.find("layer_types"):
        return [kind == "full_attention" for kind in types]
    return [index > 0 and index % 4 == 0 for index in range(h.layers)]


def full(h: Hyperparameters, layer: int) -> bool:
    return full_layers(h)[layer]


def delta(h: Hyperparameters, layer: int) -> bool:
    return not full(h, layer)


def low_rank(h: Hyperparameters, layer: int) -> bool:
    return full(h, layer) and h.find("q_lora_rank") is not None


def decay(h: Hyperparameters) -> Operation:
    return NegativeExp()


def kvs(h: Hyperparameters) -> KVs:
    rank, rotated = int(h["kv_lora_rank"]), int(h["qk_rope_head_dim"])
    kvs = common_kvs(h) | {
        "vocab_size": (h["vocab_size"], U32),
        "attention.head_count_kv": ([int(each) for each in full_layers(h)], ARRAY),
        "ssm.conv_kernel": (_linear(h).get("short_conv_kernel_size") or h["linear_conv_kernel_dim"], U32),
        "kda.head_dim": (_linear(h).get("head_dim") or h["linear_head_dim"], U32),
        "attention.kv_lora_rank": (rank, U32),
        "rope.dimension_count": (rotated, U32),
        "attention.key_length": (rank + rotated, U32),
        "attention.value_length": (rank, U32),
        "attention.key_length_mla": (h["qk_nope_head_dim"] + rotated, U32),
        "attention.value_length_mla": (h["v_head_dim"], U32),
        "expert_feed_forward_length": (h["moe_intermediate_size"], U32),
        "expert_shared_count": (h.need("num_shared_experts", "n_shared_experts"), U32),
        "leading_dense_block_count": (leading(h), U32),
        "expert_weights_scale": (h["routed_scaling_factor"], F32),
        "expert_gating_func": (SIGMOID, U32),
    }
    if (queries := h.find("q_lora_rank")) is not None:
        kvs["attention.q_lora_rank"] = (queries, U32)
    if (groups := h.find("num_expert_group", "n_group")) is not None:
        kvs["expert_group_count"] = (groups, U32)
    return kvs


def check(h: Hyperparameters) -> list[Note]:
    heads = _linear(h).get("num_heads") or h.find("linear_num_heads")
    if heads != h.heads:
        raise Unsupported(
            f"{h.source}: {heads} heads in delta layers, {h.heads} in the others; "
            "llama.cpp's kimi-linear has one number"
        )
    if h.find("moe_renormalize") is False:
        raise Unsupported(f"{h.source}: moe_renormalize is false; llama.cpp's kimi-linear normalises")
    if "first_k_dense_replace" not in h.config and not h.find("mlp_layer_types"):
        h.config["first_k_dense_replace"] = 1
    if (epsilon := h["rms_norm_eps"]) == EPSILON:
        return []
    why = f"transformers has {EPSILON} there, llama.cpp what the config says of all norms"
    what = f"norms of latent rows, and lengths of the delta layers' queries and keys, with {epsilon}"
    return [Note(tensor="*", what=what, why=why)]


def predicting(h: Hyperparameters) -> dict[str, str]:
    why = "they predict further tokens; logits do not depend on them"
    count = int(h.find("num_nextn_predict_layers") or 0)
    return {f"model.layers.{h.layers + ahead}.": why for ahead in range(count)}


def plain_mlp(prefix: str) -> tuple[Rule, ...]:
    parts = ("gate", "up", "down")
    return tuple(Rule(f"blk.{{i}}.ffn_{part}", f"{prefix}{part}_proj", when=dense) for part in parts)


DELTA = tuple(
    replace(rule, when=delta)
    for rule in (
        Rule("blk.{i}.attn_q", ATTENTION + "q_proj"),
        Rule("blk.{i}.attn_k", ATTENTION + "k_proj"),
        Rule("blk.{i}.attn_v", ATTENTION + "v_proj"),
        Rule("blk.{i}.ssm_conv1d_q", ATTENTION + "q_conv1d"),
        Rule("blk.{i}.ssm_conv1d_k", ATTENTION + "k_conv1d"),
        Rule("blk.{i}.ssm_conv1d_v", ATTENTION + "v_conv1d"),
        Rule("blk.{i}.ssm_f_a", ATTENTION + "f_a_proj"),
        Rule("blk.{i}.ssm_f_b", ATTENTION + "f_b_proj"),
        Rule("blk.{i}.ssm_beta", ATTENTION + "b_proj"),
        Rule("blk.{i}.ssm_a", ATTENTION + "A_log", decay, suffixes=("",), ending=""),
        Rule("blk.{i}.ssm_dt", ATTENTION + "dt_bias", suffixes=("",), ending=".bias"),
        Rule("blk.{i}.ssm_g_a", ATTENTION + "g_a_proj"),
        Rule("blk.{i}.ssm_g_b", ATTENTION + "g_b_proj"),
        Rule("blk.{i}.ssm_norm", ATTENTION + "o_norm"),
    )
)
LATENT = (
    Rule("blk.{i}.attn_q", ATTENTION + "q_proj", when=lambda h, i: full(h, i) and not low_rank(h, i)),
    Rule("blk.{i}.attn_q_a", ATTENTION + "q_a_proj", when=low_rank),
    Rule("blk.{i}.attn_q_a_norm", ATTENTION + "q_a_layernorm", when=low_rank),
    Rule("blk.{i}.attn_q_b", ATTENTION + "q_b_proj", when=low_rank),
    Rule("blk.{i}.attn_kv_a_mqa", ATTENTION + "kv_a_proj_with_mqa", when=full),
    Rule("blk.{i}.attn_kv_a_norm", ATTENTION + "kv_a_layernorm", when=full),
    Rule("blk.{i}.attn_k_b", ATTENTION + "kv_b_proj", key_half, when=full),
    Rule("blk.{i}.attn_v_b", ATTENTION + "kv_b_proj", value_half, when=full),
)
FAMILY = Family(
    architecture="kimi-linear",
    layer=(
        *NORMS,
        *DELTA,
        *LATENT,
        Rule("blk.{i}.attn_output", ATTENTION + "o_proj"),
        # as published, and as transformers writes them
        OneOf((plain_mlp("model.layers.{i}.mlp."), plain_mlp(MLP))),
        Rule("blk.{i}.ffn_gate_inp", MLP + "gate", when=sparse),
        Rule(
            "blk.{i}.exp_probs_b",
            MLP + "gate.e_score_correction_bias",
            suffixes=("",),
            ending=".bias",
            when=sparse,
        ),
        Rule("blk.{i}.ffn_gate_exps", MLP + "experts.{x}.w1", stack, when=sparse),
        Rule("blk.{i}.ffn_down_exps", MLP + "experts.{x}.w2", stack, when=sparse),
        Rule("blk.{i}.ffn_up_exps", MLP + "experts.{x}.w3", stack, when=sparse),
        Rule("blk.{i}.ffn_gate_shexp", MLP + "shared_experts.gate_proj", when=sparse),
        Rule("blk.{i}.ffn_up_shexp", MLP + "shared_experts.up_proj", when=sparse),
        Rule("blk.{i}.ffn_down_shexp", MLP + "shared_experts.down_proj", when=sparse),
    ),
    ends=ENDS,
    kvs=kvs,
    rope=None,
    defaults={
        "rms_norm_eps": 1e-5, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "v_head_dim": 128, "num_experts": 256, "num_experts_per_token": 8, "num_shared_experts": 1,
        "moe_intermediate_size": 1024, "routed_scaling_factor": 2.446, "linear_head_dim": 128,
        "linear_num_heads": 32, "linear_conv_kernel_dim": 4,
    },
    check=check,
    leaves=predicting,
    head="required",
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
