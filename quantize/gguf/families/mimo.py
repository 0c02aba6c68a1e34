"""MiMo V2 Flash: sliding layers with sinks and twice the heads of keys, values narrower than keys,
DeepSeek-V3's mixture without a shared expert."""

from typing import Any

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.ahead import BEHIND, later
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import (
    ARRAY,
    ENDS,
    F32,
    NORMS,
    U32,
    Ahead,
    Family,
    KVs,
    OneOf,
    Rule,
    common_kvs,
)
from quantize.gguf.families.experts import CHOICE, MLP, SIGMOID, STACKED, bias, dense, predicting
from quantize.gguf.families.rope import LOCAL, read_rope


def sliding(h: Hyperparameters) -> list[bool]:
    if (types := h.find("layer_types")) is not None:
        return [kind == "sliding_attention" for kind in types]
    if (pattern := h.find("hybrid_layer_pattern")) is not None:  # the published spelling
        return [bool(kind) for kind in pattern]
    return [index > 0 and bool((index + 1) % 6) for index in range(h.layers)]


def slides(h: Hyperparameters, layer: int) -> bool:
    return sliding(h)[layer]


def rotated(h: Hyperparameters) -> int:
    return int(h.head_dim * read_rope(h).partial)


def kvs(h: Hyperparameters) -> KVs:
    few = h.kv_heads
    many = int(h.find("swa_num_key_value_heads") or 2 * few)
    beside = h.find("sliding_window_size")  # how many before a token, as its authors serve it
    scale = h.config.get("attention_value_scale", 0.707)  # null: none
    return common_kvs(h) | {
        "attention.head_count_kv": ([many if each else few for each in sliding(h)], ARRAY),
        "attention.sliding_window": (h["sliding_window"] if beside is None else int(beside) + 1, U32),
        "attention.sliding_window_pattern": (sliding(h), ARRAY),
        "attention.value_length": (h["v_head_dim"], U32),
        "attention.value_scale": (1.0 if scale is None else scale, F32),
        "rope.dimension_count": (rotated(h), U32),
        "rope.freq_base_swa": (h.find("swa_rope_theta") or read_rope(h, LOCAL).theta, F32),
        "expert_feed_forward_length": (h["moe_intermediate_size"], U32),
        "expert_gating_func": (SIGMOID, U32),
    }


def check(h: Hyperparameters) -> list[Note]:
    if not h["norm_topk_prob"] or (h.find("routed_scaling_factor") or 1.0) != 1:
        raise Unsupported(
            f"{h.source}: norm_topk_prob {h['norm_topk_prob']}, routed_scaling_factor "
            f"{h.find('routed_scaling_factor')}; llama.cpp's mimo2 normalises and does not scale"
        )
    for name in ("head_dim", "v_head_dim", "num_attention_heads"):
        if h.find(f"swa_{name}") not in (None, h.find(name)):
            raise Unsupported(
                f"{h.source}: swa_{name} differs from {name}; llama.cpp's mimo2 has one of them"
            )
    if read_rope(h).kind != "default" or read_rope(h, LOCAL).kind != "default":
        raise Unsupported(f"{h.source}: stretched rope, which llama.cpp's mimo2 would apply to all layers")
    return []


LAYER = (
    *NORMS,
    Rule("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
    Rule("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
    Rule("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
    Rule("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
    Rule(
        "blk.{i}.attn_sinks",
        "model.layers.{i}.self_attn.attention_sink_bias",
        suffixes=("",),
        when=slides,
    ),
    *MLP,
    CHOICE,
    bias("gate.e_score_correction_bias"),
    STACKED,
)
MTP = "model.mtp.layers.{m}."
FFN_NORM = "blk.{i}.ffn_norm"
#: slides, and has one MLP; its norm goes by two names
LATER = (
    NORMS[0],
    OneOf(
        (
            (Rule(FFN_NORM, "model.layers.{i}.pre_mlp_layernorm"),),
            (Rule(FFN_NORM, "model.layers.{i}.post_attention_layernorm"),),
        )
    ),
    *LAYER[2:6],
    Rule("blk.{i}.attn_sinks", "model.layers.{i}.self_attn.attention_sink_bias", suffixes=(), optional=("",)),
    *MLP,
    *BEHIND[:3],
    Rule("blk.{i}.layer_output_norm", "model.layers.{i}.final_layernorm", suffixes=(), optional=(".weight",)),
)


def later_kvs(h: Hyperparameters) -> dict[str, Any]:
    many = int(h.find("swa_num_key_value_heads") or 2 * h.kv_heads)
    return {"attention.head_count_kv": many, "attention.sliding_window_pattern": True}


FAMILY = Family(
    architecture="mimo2",
    layer=LAYER,
    ahead=Ahead(later(LATER, MTP, holds=(dense,)), kvs=later_kvs),
    ends=ENDS,
    kvs=kvs,
    rotated=rotated,
    defaults={
        "rms_norm_eps": 1e-5, "rope_theta": 5e6, "partial_rotary_factor": 0.334,
        "max_position_embeddings": 131072, "head_dim": 192, "v_head_dim": 128, "num_key_value_heads": 4,
        "sliding_window": 129, "n_routed_experts": 256, "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048, "norm_topk_prob": True,
    },
    check=check,
    leaves=predicting,
    head="required",
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
