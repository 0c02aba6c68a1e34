"""ERNIE 4.5, dense and mixtures: rotates neighbouring columns as llama.cpp does, so that nothing is
permuted."""

from collections.abc import Mapping
from dataclasses import replace

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ENDS, NORMS, U32, Family, KVs, Rule, common_kvs
from quantize.gguf.families.operations import Flat, Operation
from quantize.gguf.families.qwen_moe import EXPERTS, ROUTER

ATTENTION = (
    Rule("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
    Rule("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
    Rule("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
    Rule("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
)
MLP = (
    Rule("blk.{i}.ffn_gate", "model.layers.{i}.mlp.gate_proj"),
    Rule("blk.{i}.ffn_up", "model.layers.{i}.mlp.up_proj"),
    Rule("blk.{i}.ffn_down", "model.layers.{i}.mlp.down_proj"),
)
SHARED = "model.layers.{i}.mlp.shared_experts."


def sparse(h: Hyperparameters, layer: int) -> bool:
    return layer >= int(h["moe_layer_start_index"])


def dense(h: Hyperparameters, layer: int) -> bool:
    return not sparse(h, layer)


def shared(h: Hyperparameters, layer: int) -> bool:
    return sparse(h, layer) and bool(h.find("moe_num_shared_experts"))


def flat(h: Hyperparameters) -> Operation:
    return Flat()


def kvs_experts(h: Hyperparameters) -> KVs:
    width, count = int(h["moe_intermediate_size"]), int(h.find("moe_num_shared_experts") or 0)
    return common_kvs(h) | {
        "expert_count": (h.experts, U32),
        "expert_used_count": (h["moe_k"], U32),
        "interleave_moe_layer_step": (1, U32),
        "leading_dense_block_count": (h["moe_layer_start_index"], U32),
        "expert_feed_forward_length": (width, U32),
        "expert_shared_count": (count, U32),
        "expert_shared_feed_forward_length": (width * count, U32),
    }


def check_experts(h: Hyperparameters) -> list[Note]:
    last = h.find("moe_layer_end_index")
    if h.find("moe_layer_interval") != 1 or not (last in (None, -1) or last >= h.layers - 1):
        raise Unsupported(
            f"{h.source}: moe_layer_interval {h.find('moe_layer_interval')}, moe_layer_end_index {last}; "
            "llama.cpp expects experts in all layers from moe_layer_start_index on"
        )
    return []


def leaves(h: Hyperparameters) -> Mapping[str, str]:
    return {"model.mtp_": "they predict further tokens, which llama.cpp's ernie4_5-moe does not do"}


DEFAULTS = {
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}  # fmt: skip
DENSE = Family(
    architecture="ernie4_5",
    layer=(*NORMS, *ATTENTION, *MLP),
    ends=ENDS,
    kvs=common_kvs,
    defaults={**DEFAULTS, "head_dim": 128, "num_key_value_heads": 2},
)
EXPERTS_OF = Family(
    architecture="ernie4_5-moe",
    layer=(
        *NORMS,
        *ATTENTION,
        *(replace(rule, when=dense) for rule in MLP),
        replace(ROUTER, when=sparse),
        Rule(
            "blk.{i}.exp_probs_b",
            "model.layers.{i}.mlp.moe_statics.e_score_correction_bias",
            flat,
            suffixes=("",),
        ending=".bias",
            when=sparse,
        ),
        EXPERTS.where(sparse),
        Rule("blk.{i}.ffn_gate_shexp", SHARED + "gate_proj", when=shared),
        Rule("blk.{i}.ffn_up_shexp", SHARED + "up_proj", when=shared),
        Rule("blk.{i}.ffn_down_shexp", SHARED + "down_proj", when=shared),
    ),
    ends=ENDS,
    kvs=kvs_experts,
    defaults={
        **DEFAULTS, "num_key_value_heads": 4, "moe_num_experts": 64, "moe_k": 6,
        "moe_intermediate_size": 1536,
        "moe_num_shared_experts": 2, "moe_layer_start_index": 1, "moe_layer_interval": 1,
    },
    check=check_experts,
    leaves=leaves,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return EXPERTS_OF if checkpoint.architecture == "Ernie4_5_MoeForCausalLM" else DENSE
