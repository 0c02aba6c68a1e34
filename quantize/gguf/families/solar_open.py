"""Solar Open: GLM 4.5's mixture with experts in every layer, whole heads rotated and no norm of q and k."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.ahead import BEHIND, SHARED_NORM, later
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ENDS, U32, Ahead, Family, KVs, Rule, common_kvs, linear
from quantize.gguf.families.experts import leading, mixture, mixture_kvs, predicting, sparse
from quantize.gguf.families.rope import read_rope


def rotated(h: Hyperparameters) -> int:
    return int(h.head_dim * read_rope(h).partial)


def kvs(h: Hyperparameters) -> KVs:
    mixed = mixture_kvs(h, normed=bool(h["norm_topk_prob"]))
    return (
        common_kvs(h)
        | mixed
        | {
            "rope.dimension_count": (rotated(h), U32),
            "expert_shared_count": (h["n_shared_experts"], U32),
            "leading_dense_block_count": (leading(h), U32),
        }
    )


LAYER = (
    Rule("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm"),
    Rule("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
    linear("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
    linear("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
    linear("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
    Rule("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
    *mixture("gate.e_score_correction_bias", "shared_experts"),
)
FAMILY = Family(
    architecture="glm4moe",
    layer=LAYER,
    ahead=Ahead((*later(LAYER, holds=(sparse,)), *BEHIND, SHARED_NORM)),
    ends=ENDS,
    kvs=kvs,
    rotated=rotated,
    defaults={
        "rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 131072, "head_dim": 128,
        "num_key_value_heads": 8, "n_routed_experts": 128, "num_experts_per_tok": 8, "n_shared_experts": 1,
        "moe_intermediate_size": 1280, "routed_scaling_factor": 1.0, "norm_topk_prob": True,
    },
    leaves=predicting,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
