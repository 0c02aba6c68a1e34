"""Cohere 2's mixture (North): attention and experts side by side, rotation in sliding layers only."""

from dataclasses import replace

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.ahead import BEHIND, SHARED_NORM, later
from quantize.gguf.families.cohere import ENDS, NORM, unscaled
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ARRAY, BOOL, F32, U32, Ahead, Family, KVs, OneOf, Rule, common_kvs
from quantize.gguf.families.experts import (
    CHOICE,
    MLP,
    SIGMOID,
    SOFTMAX,
    STACKED,
    leading,
    predicting,
    shared,
    sparse,
)
from quantize.gguf.families.gemma import layer_types


def shares(h: Hyperparameters, layer: int) -> bool:
    return bool(h.find("num_shared_experts"))


def has_shared(h: Hyperparameters, layer: int) -> bool:
    return sparse(h, layer) and shares(h, layer)


def kvs(h: Hyperparameters) -> KVs:
    kvs = common_kvs(h)
    if h.find("rms_norm_eps") is not None:
        kvs.pop("attention.layer_norm_epsilon", None)
    width, softmax = h["intermediate_size"], h["expert_selection_fn"] == "softmax"
    kvs |= {
        "feed_forward_length": (h.find("prefix_dense_intermediate_size") or width, U32),
        "logit_scale": (h["logit_scale"], F32),
        "attention.sliding_window": (h["sliding_window"], U32),
        "attention.sliding_window_pattern": (layer_types(h, 4), ARRAY),
        "vocab_size": (h["vocab_size"], U32),
        "expert_feed_forward_length": (width, U32),
        "leading_dense_block_count": (leading(h), U32),
        "expert_gating_func": (SOFTMAX if softmax else SIGMOID, U32),
        # a softmax over the chosen ones is one over all, normalised
        "expert_weights_norm": (softmax or bool(h["norm_topk_prob"]), BOOL),
        "rope.dimension_count": (h.head_dim, U32),
    }
    if count := h.find("num_shared_experts"):
        kvs |= {
            "expert_shared_count": (count, U32),
            "expert_shared_feed_forward_length": (width * count, U32),
        }
    return unscaled(kvs)


def check(h: Hyperparameters) -> list[Note]:
    if h["expert_selection_fn"] not in ("softmax", "sigmoid"):
        raise Unsupported(f"{h.source}: expert_selection_fn {h['expert_selection_fn']!r} is not known")
    if h.find("num_shared_experts") and h["shared_expert_combination_strategy"] != "average":
        raise Unsupported(f"{h.source}: shared experts are summed; llama.cpp's cohere2moe takes the average")
    pattern = h.find("prefix_dense_sliding_window_pattern")
    if leading(h) and pattern != 1:
        raise Unsupported(
            f"{h.source}: prefix_dense_sliding_window_pattern {pattern}; "
            "llama.cpp's cohere2moe rotates all layers without experts"
        )
    return []


#: of a layer behind the last one, where the others have it
SHARED_LATER = tuple(replace(rule, when=shares) for rule in shared("shared_experts"))
LAYER: tuple[Rule | OneOf, ...] = (
    NORM,
    Rule("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
    Rule("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
    Rule("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
    Rule("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
    *MLP,
    CHOICE,
    STACKED,
    *(replace(rule, when=has_shared) for rule in shared("shared_experts")),
)
FAMILY = Family(
    architecture="cohere2moe",
    layer=LAYER,
    ahead=Ahead((*later(LAYER, holds=(sparse,)), *SHARED_LATER, *BEHIND, SHARED_NORM)),
    ends=ENDS,
    kvs=kvs,
    defaults={
        "max_position_embeddings": 8192, "layer_norm_eps": 1e-5, "rope_theta": 10000.0, "head_dim": 128,
        "logit_scale": 0.0625, "sliding_window": 4096, "num_experts": 8, "num_experts_per_tok": 2,
        "expert_selection_fn": "softmax", "norm_topk_prob": True,
        "shared_expert_combination_strategy": "average", "prefix_dense_sliding_window_pattern": 1,
        "tie_word_embeddings": True,
    },
    check=check,
    leaves=predicting,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
