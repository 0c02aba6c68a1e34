"""Mellum 2: Qwen 3's mixture with sliding windows."""

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import (
    ARRAY,
    ATTENTION,
    ENDS,
    NORMS,
    QK_NORMS,
    U32,
    Family,
    KVs,
    common_kvs,
)
from quantize.gguf.families.experts import dense_layers, predicting
from quantize.gguf.families.olmo2 import check3
from quantize.gguf.families.qwen_moe import EXPERTS, ROUTER


def sliding(h: Hyperparameters) -> list[bool]:
    if h.find("use_sliding_window") is False:
        return [False] * h.layers
    return [kind == "sliding_attention" for kind in h.find("layer_types") or []] or [False] * h.layers


def kvs(h: Hyperparameters) -> KVs:
    kvs = common_kvs(h) | {"expert_feed_forward_length": (h["moe_intermediate_size"], U32)}
    if any(sliding(h)):
        kvs["attention.sliding_window"] = (h["sliding_window"], U32)
        kvs["attention.sliding_window_pattern"] = (sliding(h), ARRAY)
    return kvs


def check(h: Hyperparameters) -> list[Note]:
    if any(dense_layers(h)):
        raise Unsupported(f"{h.source}: layers without experts, which llama.cpp's mellum does not have")
    if not h["norm_topk_prob"]:
        raise Unsupported(f"{h.source}: norm_topk_prob is false; llama.cpp's mellum normalises")
    return check3(h) if any(sliding(h)) else []


FAMILY = Family(
    architecture="mellum",
    layer=(*NORMS, *ATTENTION, *QK_NORMS, ROUTER, EXPERTS),
    ends=ENDS,
    kvs=kvs,
    defaults={
        "rms_norm_eps": 1e-6, "rope_theta": 500000.0, "max_position_embeddings": 131072, "head_dim": 128,
        "num_key_value_heads": 4, "sliding_window": 1024, "num_experts": 64, "num_experts_per_tok": 8,
        "moe_intermediate_size": 896, "norm_topk_prob": True,
    },
    check=check,
    leaves=predicting,
    head="required",
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
