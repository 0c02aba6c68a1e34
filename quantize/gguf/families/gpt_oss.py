"""gpt-oss: attention with sinks, every other layer in a window; experts whose gate and up are interleaved,
stored input first, all with biases."""

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ATTENTION, ENDS, U32, Family, KVs, Rule, common_kvs, plain
from quantize.gguf.families.operations import Operation, Part, SwapAxes
from quantize.gguf.families.rope import read_rope
from quantize.gguf.families.states import always

EXPERTS = "model.layers.{i}.mlp.experts."
UP_BIAS = EXPERTS + "gate_up_proj_bias"


class Every:
    """Of interleaved gate (0) and up (1): matrices (experts, hidden, 2 * ff), or biases (experts, 2 * ff)."""

    def __init__(self, index: int, bias: bool = False):
        self.index, self.bias = index, bias

    def __call__(self, h: Hyperparameters) -> Operation:
        view, index = (int(h["intermediate_size"]), 2), self.index
        if self.bias:
            return Part(view, 1, index, index + 1, lead=1)
        return Part(view, 1, index, index + 1, SwapAxes(), lead=2)


LAYER = (
    Rule("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm"),
    Rule("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
    *ATTENTION,
    Rule("blk.{i}.attn_sinks", "model.layers.{i}.self_attn.sinks", suffixes=("",)),
    plain("blk.{i}.ffn_gate_inp", "model.layers.{i}.mlp.router"),
    Rule("blk.{i}.ffn_gate_exps", EXPERTS + "gate_up_proj", Every(0), suffixes=("",)),
    Rule("blk.{i}.ffn_up_exps", EXPERTS + "gate_up_proj", Every(1), suffixes=("",)),
    Rule("blk.{i}.ffn_gate_exps", UP_BIAS, Every(0, True), suffixes=("",), ending=".bias"),
    Rule("blk.{i}.ffn_up_exps", UP_BIAS, Every(1, True), suffixes=("",), ending=".bias"),
    Rule("blk.{i}.ffn_down_exps", EXPERTS + "down_proj", always(SwapAxes()), suffixes=("",)),
    Rule("blk.{i}.ffn_down_exps", EXPERTS + "down_proj_bias", suffixes=("",), ending=".bias"),
)  # fmt: skip


def kvs(h: Hyperparameters) -> KVs:
    return common_kvs(h) | {
        "attention.sliding_window": (h["sliding_window"], U32),
        "expert_feed_forward_length": (h["intermediate_size"], U32),
    }


def check(h: Hyperparameters) -> list[Note]:
    types = h.find("layer_types")
    usual = ["full_attention" if index % 2 else "sliding_attention" for index in range(h.layers)]
    if types and types != usual:
        raise Unsupported(
            f"{h.source}: layer_types other than windows in layers 0, 2, ..., as llama.cpp has it"
        )
    if float(h["swiglu_limit"]) != 7.0 or float(h["swiglu_alpha"]) != 1.702:
        raise Unsupported(
            f"{h.source}: swiglu_alpha and swiglu_limit other than 1.702 and 7, as llama.cpp has"
        )
    rope = read_rope(h)
    if rope.kind == "yarn" and not rope.own.get("truncate", True):
        h.config["rope_parameters"] = {**rope.own, "rope_theta": rope.theta, "truncate": True}
        h.config.pop("rope_scaling", None)
        why = "llama.cpp's YaRN rounds the ends of its ramp to whole dimensions, which this model does not"
        return [Note(tensor="*", what="YaRN with truncate false approximated", why=why)]
    return []


FAMILY = Family(
    architecture="gpt-oss",
    layer=LAYER,
    ends=ENDS,
    kvs=kvs,
    defaults={
        "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "max_position_embeddings": 131072, "head_dim": 64,
        "num_key_value_heads": 8, "num_local_experts": 128, "num_experts_per_tok": 4,
        "intermediate_size": 2880, "sliding_window": 128, "swiglu_alpha": 1.702, "swiglu_limit": 7.0,
    },
    check=check,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
