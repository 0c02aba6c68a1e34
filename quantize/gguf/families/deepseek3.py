"""DeepSeek V3, R1 and Kimi K2: DeepSeek V2's attention, experts chosen by sigmoid, a bias and groups; V3.2,
whose attention chooses its tokens."""

from collections.abc import Mapping
from dataclasses import replace

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.ahead import BEHIND, SHARED_NORM
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import BOOL, ENDS, F32, U32, Ahead, Family, KVs, Rule, plain
from quantize.gguf.families.deepseek2 import ATTENTION, LAYER, SPARSE, rotated, sparse
from quantize.gguf.families.deepseek2 import check as check_rope
from quantize.gguf.families.deepseek2 import kvs as kvs2

SIGMOID = 2
#: what V3.2's config class does not have
LATER = ("rope_interleave", "num_nextn_predict_layers")
BIAS = Rule(
    "blk.{i}.exp_probs_b",
    "model.layers.{i}.mlp.gate.e_score_correction_bias",
    suffixes=("",),
    ending=".bias",
    when=sparse,
)
#: dense layers first, then experts one by one or fused, their bias, and one wide shared expert
MIXTURE = (*SPARSE, BIAS)


def mixture_kvs(h: Hyperparameters) -> KVs:
    return {
        "leading_dense_block_count": (h["first_k_dense_replace"], U32),
        "expert_feed_forward_length": (h["moe_intermediate_size"], U32),
        "expert_shared_count": (h["n_shared_experts"], U32),
        "expert_weights_scale": (h["routed_scaling_factor"], F32),
        "expert_weights_norm": (bool(h["norm_topk_prob"]), BOOL),
        "expert_gating_func": (SIGMOID, U32),
    }


def kvs(h: Hyperparameters) -> KVs:
    kvs = kvs2(h)
    return kvs | {"expert_gating_func": (SIGMOID, U32)} if h.find("n_routed_experts") else kvs


def check(h: Hyperparameters) -> list[Note]:
    if not h.find("rope_interleave"):
        raise Unsupported(f"{h.source}: rope_interleave is false; llama.cpp's deepseek2 rotates neighbours")
    return check_rope(h)


def later_layers(h: Hyperparameters) -> Mapping[str, str]:
    """Of layers after the last one, which predict further tokens (multi-token prediction)."""
    why = "they predict further tokens; logits do not depend on them"
    count = int(h.find("num_nextn_predict_layers") or 0)
    return {f"model.layers.{h.layers + ahead}.": why for ahead in range(count)}


FAMILY = Family(
    architecture="deepseek2",
    layer=(*LAYER, BIAS),
    ends=ENDS,
    kvs=kvs,
    rotated=rotated,
    defaults={
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 4096,
        "first_k_dense_replace": 3, "num_experts_per_tok": 8, "n_group": 8,
        "topk_group": 4, "norm_topk_prob": True, "moe_intermediate_size": 2048, "rope_interleave": True,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "routed_scaling_factor": 2.5, "n_shared_experts": 1,
        "num_nextn_predict_layers": 1,
    },
    check=check,
    leaves=later_layers,
    ahead=Ahead((*LAYER, BIAS, *BEHIND, SHARED_NORM)),
)  # fmt: skip


INDEXER = ATTENTION + "indexer."


def kvs32(h: Hyperparameters) -> KVs:
    return kvs(h) | {
        "attention.indexer.head_count": (h["index_n_heads"], U32),
        "attention.indexer.key_length": (h["index_head_dim"], U32),
        "attention.indexer.top_k": (h["index_topk"], U32),
    }


INDEXED = (
    plain("blk.{i}.indexer.k_norm", INDEXER + "k_norm"),
    Rule("blk.{i}.indexer.proj", INDEXER + "weights_proj"),
    Rule("blk.{i}.indexer.attn_k", INDEXER + "wk"),
    Rule("blk.{i}.indexer.attn_q_b", INDEXER + "wq_b"),
)
#: V3.2 attends to the tokens that an indexer chooses, which is a small attention of its own
SPARSE_ATTENTION = replace(
    FAMILY,
    architecture="deepseek32",
    layer=(*FAMILY.layer, *INDEXED),
    ahead=Ahead((*FAMILY.layer, *INDEXED, *BEHIND, SHARED_NORM)),
    kvs=kvs32,
    defaults={
        **{key: value for key, value in FAMILY.defaults.items() if key not in LATER},
        "max_position_embeddings": 163840, "index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048,
    },
    check=check_rope,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return SPARSE_ATTENTION if checkpoint.architecture == "DeepseekV32ForCausalLM" else FAMILY
