"""Hunyuan 3: q and k normalised by head, experts chosen by sigmoid and a bias, one shared expert."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.ahead import BEHIND, LAST_NORM, later
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import (
    ENDS,
    NORMS,
    QK_NORMS,
    U32,
    UNBIASED,
    Ahead,
    Family,
    KVs,
    Rule,
    common_kvs,
)
from quantize.gguf.families.experts import mixture, mixture_kvs, predicting, sparse

CHOICE = Rule("blk.{i}.ffn_gate_inp", "model.layers.{i}.mlp.router.gate", when=sparse)


def kvs(h: Hyperparameters) -> KVs:
    wide = int(h["moe_intermediate_size"]) * int(h["num_shared_experts"])
    mixed = mixture_kvs(h, "router_scaling_factor")
    return common_kvs(h) | mixed | {"expert_shared_feed_forward_length": (wide, U32)}


LAYER = (*NORMS, *UNBIASED, *QK_NORMS, *mixture("expert_bias", "shared_mlp", choice=CHOICE, ending=""))
FAMILY = Family(
    architecture="hy_v3",
    layer=LAYER,
    ahead=Ahead((*later(LAYER, holds=(sparse,)), *BEHIND, LAST_NORM)),
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
