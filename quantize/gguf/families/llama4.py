"""Llama 4's text model: experts of one choice beside a shared one, in every layer or every other; every
fourth layer attends to all and rotates nothing, the others to chunks."""

from dataclasses import replace

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ATTENTION, ENDS, NORMS, U32, Family, KVs, Rule, common_kvs
from quantize.gguf.families.llama import ROPE
from quantize.gguf.families.operations import Operation, Part, SwapAxes
from quantize.gguf.families.states import always

FFN = "model.layers.{i}.feed_forward."


def sparse(h: Hyperparameters, layer: int) -> bool:
    return (layer + 1) % int(h["interleave_moe_layer_step"]) == 0


def dense(h: Hyperparameters, layer: int) -> bool:
    return not sparse(h, layer)


class Half:
    """Of gate (0) and up (1) side by side, input first: (experts, hidden, 2 * ff)."""

    def __init__(self, index: int):
        self.index = index

    def __call__(self, h: Hyperparameters) -> Operation:
        view = (2, int(h["intermediate_size"]))
        return Part(view, 0, self.index, self.index + 1, SwapAxes(), lead=2)


LAYER = (
    *NORMS,
    *ATTENTION,
    Rule("blk.{i}.ffn_gate", FFN + "gate_proj", when=dense),
    Rule("blk.{i}.ffn_up", FFN + "up_proj", when=dense),
    Rule("blk.{i}.ffn_down", FFN + "down_proj", when=dense),
    Rule("blk.{i}.ffn_gate_inp", FFN + "router", when=sparse),
    Rule("blk.{i}.ffn_gate_exps", FFN + "experts.gate_up_proj", Half(0), suffixes=("",), when=sparse),
    Rule("blk.{i}.ffn_up_exps", FFN + "experts.gate_up_proj", Half(1), suffixes=("",), when=sparse),
    Rule("blk.{i}.ffn_down_exps", FFN + "experts.down_proj", always(SwapAxes()), suffixes=("",), when=sparse),
    Rule("blk.{i}.ffn_gate_shexp", FFN + "shared_expert.gate_proj", when=sparse),
    Rule("blk.{i}.ffn_up_shexp", FFN + "shared_expert.up_proj", when=sparse),
    Rule("blk.{i}.ffn_down_shexp", FFN + "shared_expert.down_proj", when=sparse),
)


def kvs(h: Hyperparameters) -> KVs:
    return common_kvs(h) | {
        "vocab_size": (h["vocab_size"], U32),
        "rope.dimension_count": (h.head_dim, U32),
        "feed_forward_length": (h["intermediate_size_mlp"], U32),
        "expert_feed_forward_length": (h["intermediate_size"], U32),
        "interleave_moe_layer_step": (h["interleave_moe_layer_step"], U32),
    }


def check(h: Hyperparameters) -> list[Note]:
    rotates = h.find("no_rope_layers") or [int((index + 1) % 4 != 0) for index in range(h.layers)]
    if [bool(each) for each in rotates] != [bool((index + 1) % 4) for index in range(h.layers)]:
        raise Unsupported(f"{h.source}: no_rope_layers other than every fourth, as llama.cpp has it")
    if (
        int(h["attention_chunk_size"]) != 8192
        or int(h["floor_scale"]) != 8192
        or float(h["attn_scale"]) != 0.1
    ):
        raise Unsupported(
            f"{h.source}: attention_chunk_size, floor_scale or attn_scale other than 8192, 8192 and 0.1, "
            "which llama.cpp has built in"
        )
    # llama.cpp knows Maverick, whose queries are not normed, by its experts
    if bool(h["use_qk_norm"]) != (h.experts != 128):
        raise Unsupported(
            f"{h.source}: use_qk_norm {h['use_qk_norm']} with {h.experts} experts; llama.cpp norms otherwise"
        )
    if not h["attn_temperature_tuning"]:
        why = "llama.cpp scales queries of positions from 8192 on, which this model does not"
        return [Note(tensor="*", what="attn_temperature_tuning false not kept", why=why)]
    return []


FAMILY = Family(
    architecture="llama4",
    layer=LAYER,
    ends=ENDS,
    kvs=kvs,
    rope=ROPE,
    defaults={
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 131072, "head_dim": 128,
        "num_key_value_heads": 8, "num_local_experts": 16, "num_experts_per_tok": 1,
        "intermediate_size": 8192, "intermediate_size_mlp": 16384, "interleave_moe_layer_step": 1,
        "use_qk_norm": True, "attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1,
        "attn_temperature_tuning": True,
    },
    check=check,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY if checkpoint.architecture == "Llama4ForCausalLM" else replace(FAMILY, multimodal=True)
