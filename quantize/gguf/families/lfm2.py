"""LFM 2, with one MLP or with experts: short gated convolutions, attention in some layers."""

from dataclasses import replace

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ARRAY, F32, HEAD, U32, Family, KVs, OneOf, Rule, common_kvs
from quantize.gguf.families.experts import SIGMOID
from quantize.gguf.families.operations import Operation, Part, Stack
from quantize.gguf.families.states import KERNEL, always

LAYER = "model.layers.{i}."
EXPERT = LAYER + "feed_forward.experts."


def attends(h: Hyperparameters, layer: int) -> bool:
    types, indices = h.find("layer_types"), h.find("full_attn_idxs")
    if types:
        return bool(types[layer] == "full_attention")
    return indices is None or layer in indices


def convolves(h: Hyperparameters, layer: int) -> bool:
    return not attends(h, layer)


def dense(h: Hyperparameters, layer: int) -> bool:
    return layer < int(h["num_dense_layers"])


def sparse(h: Hyperparameters, layer: int) -> bool:
    return not dense(h, layer)


def biased(h: Hyperparameters, layer: int) -> bool:
    return sparse(h, layer) and bool(h.find("use_expert_bias"))


MIXERS = (
    Rule("blk.{i}.attn_norm", LAYER + "operator_norm"),
    Rule("blk.{i}.ffn_norm", LAYER + "ffn_norm"),
    Rule("blk.{i}.shortconv.in_proj", LAYER + "conv.in_proj", when=convolves),
    Rule("blk.{i}.shortconv.conv", LAYER + "conv.conv", KERNEL, when=convolves),
    Rule("blk.{i}.shortconv.out_proj", LAYER + "conv.out_proj", when=convolves),
    Rule("blk.{i}.attn_q", LAYER + "self_attn.q_proj", when=attends),
    Rule("blk.{i}.attn_k", LAYER + "self_attn.k_proj", when=attends),
    Rule("blk.{i}.attn_v", LAYER + "self_attn.v_proj", when=attends),
    Rule("blk.{i}.attn_output", LAYER + "self_attn.out_proj", when=attends),
    Rule("blk.{i}.attn_q_norm", LAYER + "self_attn.q_layernorm", when=attends),
    Rule("blk.{i}.attn_k_norm", LAYER + "self_attn.k_layernorm", when=attends),
)
MLP = (
    Rule("blk.{i}.ffn_gate", LAYER + "feed_forward.w1"),
    Rule("blk.{i}.ffn_down", LAYER + "feed_forward.w2"),
    Rule("blk.{i}.ffn_up", LAYER + "feed_forward.w3"),
)


class Half:
    def __init__(self, index: int):
        self.index = index

    def __call__(self, h: Hyperparameters) -> Operation:
        return Part((2, int(h["moe_intermediate_size"])), 0, self.index, self.index + 1, lead=1)


STACK = always(Stack())
MOE = OneOf(
    (
        (
            Rule("blk.{i}.ffn_gate_exps", EXPERT + "{x}.w1", STACK),
            Rule("blk.{i}.ffn_down_exps", EXPERT + "{x}.w2", STACK),
            Rule("blk.{i}.ffn_up_exps", EXPERT + "{x}.w3", STACK),
        ),
        (
            Rule("blk.{i}.ffn_down_exps", EXPERT + "down_proj", suffixes=("",)),
            Rule("blk.{i}.ffn_gate_exps", EXPERT + "gate_up_proj", Half(0), suffixes=("",)),
            Rule("blk.{i}.ffn_up_exps", EXPERT + "gate_up_proj", Half(1), suffixes=("",)),
        ),
    )
).where(sparse)
ENDS = (
    Rule("token_embd", "model.embed_tokens"),
    Rule("token_embd_norm", "model.embedding_norm"),  # in front of the head, whatever its name
    HEAD,
)


def width(h: Hyperparameters) -> int:
    """Rows of an MLP. Source: transformers' ``Lfm2MLP``."""
    wide = int(h.need("block_ff_dim", "intermediate_size"))
    if h["block_auto_adjust_ff_dim"]:
        multiple = int(h["block_multiple_of"])
        wide = int(float(h["block_ffn_dim_multiplier"]) * int(2 * wide / 3))
        wide = multiple * -(-wide // multiple)
    return wide


def shared_kvs(h: Hyperparameters) -> KVs:
    groups = [h.kv_heads if attends(h, layer) else 0 for layer in range(h.layers)]
    return common_kvs(h) | {
        "attention.head_count_kv": (groups, ARRAY),
        "vocab_size": (h["vocab_size"], U32),
        "shortconv.l_cache": (h["conv_L_cache"], U32),
        "attention.layer_norm_rms_epsilon": (h["norm_eps"], F32),
    }


def kvs(h: Hyperparameters) -> KVs:
    return shared_kvs(h) | {"feed_forward_length": (width(h), U32)}


def moe_kvs(h: Hyperparameters) -> KVs:
    return shared_kvs(h) | {
        "expert_feed_forward_length": (h["moe_intermediate_size"], U32),
        "leading_dense_block_count": (h["num_dense_layers"], U32),
        "expert_gating_func": (SIGMOID, U32),
    }


def check(h: Hyperparameters) -> list[Note]:
    if h.find("conv_bias"):
        raise Unsupported(f"{h.source}: conv_bias, which llama.cpp's lfm2 does not have")
    return []


def moe_check(h: Hyperparameters) -> list[Note]:
    if not h["norm_topk_prob"] or float(h["routed_scaling_factor"]) != 1 or not h["use_expert_bias"]:
        raise Unsupported(
            f"{h.source}: norm_topk_prob and use_expert_bias must be true and routed_scaling_factor 1, "
            "as llama.cpp computes its lfm2moe"
        )
    return check(h)


BASE = {
    "max_position_embeddings": 128000, "num_key_value_heads": 8, "norm_eps": 1e-5, "rope_theta": 1e6,
    "tie_word_embeddings": True,
}  # fmt: skip
LFM2 = Family(
    architecture="lfm2",
    layer=(*MIXERS, *MLP),
    ends=ENDS,
    kvs=kvs,
    defaults={
        **BASE, "block_auto_adjust_ff_dim": True, "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0,
        "conv_L_cache": 3,
    },
    check=check,
)  # fmt: skip
LFM2_MOE = Family(
    architecture="lfm2moe",
    layer=(
        *MIXERS,
        *(replace(rule, when=dense) for rule in MLP),
        Rule("blk.{i}.ffn_gate_inp", LAYER + "feed_forward.gate", when=sparse),
        Rule(
            "blk.{i}.exp_probs_b",
            LAYER + "feed_forward.expert_bias",
            suffixes=("",),
            ending=".bias",
            when=biased,
        ),
        MOE,
    ),
    ends=ENDS,
    kvs=moe_kvs,
    defaults={
        **BASE, "moe_intermediate_size": 1792, "num_dense_layers": 2, "num_experts": 32,
        "num_experts_per_tok": 4, "use_expert_bias": True, "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "conv_L_cache": 3,
    },
    check=moe_check,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return LFM2 if checkpoint.architecture == "Lfm2ForCausalLM" else LFM2_MOE
