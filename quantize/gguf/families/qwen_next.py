"""Qwen 3 Next, and Qwen 3.5 with one MLP or with experts: three layers of gated delta net for each one of
attention, whose queries bring a gate. Norms multiply by 1 + weight, but for that of the delta net."""

from dataclasses import replace

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.ahead import later, module
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import (
    ATTENTION,
    HEAD,
    MLP,
    U32,
    Ahead,
    Family,
    KVs,
    Rule,
    common_kvs,
)
from quantize.gguf.families.gemma import QK_NORMS, one
from quantize.gguf.families.operations import Operation, Part
from quantize.gguf.families.phi import rotated
from quantize.gguf.families.qwen import sections
from quantize.gguf.families.qwen_moe import EXPERTS, ROUTER, SHARED
from quantize.gguf.families.states import KERNEL, NEGATIVE, Chain, Joined, NegativeExp, Squeeze, TileHeads

INTERVAL = 4  # every fourth layer attends
DELTA = "model.layers.{i}.linear_attn."


def recurrent(h: Hyperparameters) -> list[bool]:
    types = h.find("layer_types")
    interval = int(h.find("full_attention_interval") or INTERVAL)
    if types:
        return [kind == "linear_attention" for kind in types]
    return [bool((index + 1) % interval) for index in range(h.layers)]


def linear(h: Hyperparameters, layer: int) -> bool:
    return recurrent(h)[layer]


def full(h: Hyperparameters, layer: int) -> bool:
    return not linear(h, layer)


class Heads:
    """Numbers and widths of the delta net's heads."""

    def __init__(self, h: Hyperparameters):
        self.keys, self.values = int(h["linear_num_key_heads"]), int(h["linear_num_value_heads"])
        self.key, self.value = int(h["linear_key_head_dim"]), int(h["linear_value_head_dim"])
        self.each = self.values // self.keys

    def tiles(self, width: int = 1, start: int = 0, axis: int = 0) -> TileHeads:
        return TileHeads(self.keys, self.each, width, start, axis)


def _piece(h: Hyperparameters, first: int, last: int) -> Operation:
    """Of the fused queries, keys, values and gates of each key head (0 to 3), those from ``first`` on."""
    heads = Heads(h)
    widths = [heads.key, heads.key, heads.each * heads.value, heads.each * heads.value]
    ends = [sum(widths[:count]) for count in range(5)]
    return Part((heads.keys, ends[-1]), 1, ends[first], ends[last])


def fused_qkv(h: Hyperparameters) -> Operation:
    return Joined(tuple(_piece(h, part, part + 1) for part in range(3)))


def fused_gate(h: Hyperparameters) -> Operation:
    return _piece(h, 3, 4)


def tiled_qkv(h: Hyperparameters) -> Operation:
    heads = Heads(h)
    return heads.tiles(heads.value, 2 * heads.keys * heads.key)


def tiled_kernel(h: Hyperparameters) -> Operation:
    return Chain(Squeeze(), tiled_qkv(h))


def tiled_values(h: Hyperparameters) -> Operation:
    return Heads(h).tiles(Heads(h).value)


def tiled_columns(h: Hyperparameters) -> Operation:
    return Heads(h).tiles(Heads(h).value, axis=1)


def tiled(h: Hyperparameters) -> Operation:
    return Heads(h).tiles()


def tiled_decay(h: Hyperparameters) -> Operation:
    return Chain(tiled(h), NegativeExp())


NORMS = (
    Rule("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm", one),
    Rule("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm", one),
)
FULL = tuple(replace(rule, when=full) for rule in (*ATTENTION, *QK_NORMS))
NET = (Rule("blk.{i}.ssm_norm", DELTA + "norm", when=linear),)
NEXT_NET = (
    Rule("blk.{i}.attn_qkv", DELTA + "in_proj_qkvz", fused_qkv, when=linear),
    Rule("blk.{i}.attn_gate", DELTA + "in_proj_qkvz", fused_gate, when=linear),
    Rule("blk.{i}.ssm_ba", DELTA + "in_proj_ba", when=linear),
    Rule("blk.{i}.ssm_conv1d", DELTA + "conv1d", KERNEL, when=linear),
    Rule("blk.{i}.ssm_dt", DELTA + "dt_bias", suffixes=("",), ending=".bias", when=linear),
    Rule("blk.{i}.ssm_a", DELTA + "A_log", NEGATIVE, suffixes=("",), ending="", when=linear),
    *NET,
    Rule("blk.{i}.ssm_out", DELTA + "out_proj", when=linear),
)
TILED_NET = (
    Rule("blk.{i}.attn_qkv", DELTA + "in_proj_qkv", tiled_qkv, when=linear),
    Rule("blk.{i}.attn_gate", DELTA + "in_proj_z", tiled_values, when=linear),
    Rule("blk.{i}.ssm_beta", DELTA + "in_proj_b", tiled, when=linear),
    Rule("blk.{i}.ssm_alpha", DELTA + "in_proj_a", tiled, when=linear),
    Rule("blk.{i}.ssm_conv1d", DELTA + "conv1d", tiled_kernel, when=linear),
    Rule("blk.{i}.ssm_dt", DELTA + "dt_bias", tiled, suffixes=("",), ending=".bias", when=linear),
    Rule("blk.{i}.ssm_a", DELTA + "A_log", tiled_decay, suffixes=("",), ending="", when=linear),
    *NET,
    Rule("blk.{i}.ssm_out", DELTA + "out_proj", tiled_columns, when=linear),
)
ENDS = (Rule("token_embd", "model.embed_tokens"), Rule("output_norm", "model.norm", one), HEAD)


def kvs(h: Hyperparameters) -> KVs:
    heads = Heads(h)
    found = common_kvs(h)
    if h.experts:
        found["expert_feed_forward_length"] = (h["moe_intermediate_size"], U32)
        found["expert_shared_feed_forward_length"] = (h["shared_expert_intermediate_size"], U32)
    return found | {
        "ssm.conv_kernel": (h["linear_conv_kernel_dim"], U32),
        "ssm.state_size": (heads.key, U32),
        "ssm.group_count": (heads.keys, U32),
        "ssm.time_step_rank": (heads.values, U32),
        "ssm.inner_size": (heads.value * heads.values, U32),
        "full_attention_interval": (h.find("full_attention_interval") or INTERVAL, U32),
        "rope.dimension_count": (rotated(h), U32),
    }


def kvs35(h: Hyperparameters) -> KVs:
    return kvs(h) | sections(h, (11, 11, 10))


def check(h: Hyperparameters) -> list[Note]:
    heads, interval = Heads(h), int(h.find("full_attention_interval") or INTERVAL)
    if recurrent(h) != [bool((index + 1) % interval) for index in range(h.layers)]:
        raise Unsupported(
            f"{h.source}: layer_types other than attention in every {interval}th layer, "
            "which llama.cpp has no key for"
        )
    if heads.key != heads.value:
        raise Unsupported(
            f"{h.source}: linear_key_head_dim {heads.key} and linear_value_head_dim {heads.value}; "
            "llama.cpp has one width for both"
        )
    if h.find("mlp_only_layers") or (h.find("decoder_sparse_step") or 1) != 1:
        raise Unsupported(f"{h.source}: some layers have no experts; llama.cpp expects them in all")
    if h.find("norm_topk_prob") is False:
        raise Unsupported(f"{h.source}: norm_topk_prob is false; llama.cpp computes this family with true")
    return []


def predicting(h: Hyperparameters) -> dict[str, str]:
    why = "multi-token prediction: it guesses further tokens, the next one's logits do not depend on it"
    return {"mtp.": why, "model.mtp.": why}


BASE = {
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
    "max_position_embeddings": 32768, "head_dim": 256, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}  # fmt: skip
MOE = {"num_key_value_heads": 2, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512}
MTP = "mtp.layers.{m}."
QWEN3_NEXT = Family(
    architecture="qwen3next",
    layer=(*NORMS, *FULL, *NEXT_NET, ROUTER, EXPERTS, *SHARED),
    ahead=Ahead(
        (*later((*NORMS, *FULL, ROUTER, EXPERTS, *SHARED), MTP, holds=(full,)), *module(one)), most=1
    ),
    ends=ENDS,
    kvs=kvs,
    rotated=rotated,
    defaults={**BASE, **MOE, "num_experts": 512, "num_experts_per_tok": 10, "norm_topk_prob": True},
    check=check,
    leaves=predicting,
)
QWEN35 = Family(
    architecture="qwen35",
    layer=(*NORMS, *FULL, *TILED_NET, *MLP),
    ahead=Ahead((*later((*NORMS, *FULL, *MLP), MTP, holds=(full,)), *module(one)), most=1),
    ends=ENDS,
    kvs=kvs35,
    rotated=rotated,
    defaults={**BASE, "num_key_value_heads": 4},
    check=check,
    leaves=predicting,
)
QWEN35_MOE = replace(
    QWEN35,
    architecture="qwen35moe",
    layer=(*NORMS, *FULL, *TILED_NET, ROUTER, EXPERTS, *SHARED),
    ahead=QWEN3_NEXT.ahead,
    defaults={**BASE, **MOE, "num_experts": 256, "num_experts_per_tok": 8},
)


def family(checkpoint: Checkpoint) -> Family:
    return {
        "Qwen3NextForCausalLM": QWEN3_NEXT,
        "Qwen3_5ForCausalLM": QWEN35,
        "Qwen3_5ForConditionalGeneration": replace(QWEN35, multimodal=True),
        "Qwen3_5MoeForCausalLM": QWEN35_MOE,
        "Qwen3_5MoeForConditionalGeneration": replace(QWEN35_MOE, multimodal=True),
    }[checkpoint.architecture]
