"""K-EXAONE: sliding layers of four that alone rotate, q and k normalised by head, DeepSeek-V3's mixture."""

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.ahead import later, module
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import (
    ARRAY,
    ENDS,
    NORMS,
    QK_NORMS,
    U32,
    UNBIASED,
    Ahead,
    Family,
    KVs,
    common_kvs,
)
from quantize.gguf.families.exaone4 import sliding
from quantize.gguf.families.experts import dense, leading, mixture, mixture_kvs, predicting
from quantize.gguf.families.rope import FREQUENCIES


def kvs(h: Hyperparameters) -> KVs:
    width, count = int(h["moe_intermediate_size"]), int(h["num_shared_experts"])
    mixed = mixture_kvs(h, normed=bool(h["norm_topk_prob"]))
    return (
        common_kvs(h)
        | mixed
        | {
            "vocab_size": (h["vocab_size"], U32),
            "attention.sliding_window": (h["sliding_window"], U32),
            "attention.sliding_window_pattern": (sliding(h), ARRAY),
            "expert_shared_count": (count, U32),
            "expert_shared_feed_forward_length": (width * count, U32),
            "leading_dense_block_count": (leading(h), U32),
        }
    )


def check(h: Hyperparameters) -> list[Note]:
    if h.config.get("sliding_window") is None:
        raise Unsupported(f"{h.source}: no sliding_window, which llama.cpp's exaone-moe always has")
    return []


LAYER = (*NORMS, *UNBIASED, *QK_NORMS, *mixture("e_score_correction_bias", "shared_experts"))
FAMILY = Family(
    architecture="exaone-moe",
    layer=LAYER,
    # with one MLP, whatever the layers before have
    ahead=Ahead((*later(LAYER, "mtp.layers.{m}.", holds=(dense,)), *module()), most=1),
    ends=ENDS,
    kvs=kvs,
    rope=frozenset((FREQUENCIES,)),
    defaults={
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048,
        "first_k_dense_replace": 1, "num_experts": 64, "num_experts_per_tok": 8, "num_shared_experts": 1,
        "moe_intermediate_size": 1024, "routed_scaling_factor": 2.5, "norm_topk_prob": True,
    },
    check=check,
    leaves=predicting,
    head="required",
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
