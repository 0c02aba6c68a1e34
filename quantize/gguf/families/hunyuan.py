"""Hunyuan 1, dense and mixtures: q and k normalised by head after the rotation, whose base ``alpha``
stretches."""

from typing import Any

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ENDS, NORMS, U32, Family, KVs, Rule, common_kvs
from quantize.gguf.families.qwen_moe import EXPERTS
from quantize.gguf.families.rope import read_rope

ATTENTION = (
    Rule("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
    Rule("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
    Rule("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
    Rule("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
    Rule("blk.{i}.attn_q_norm", "model.layers.{i}.self_attn.query_layernorm"),
    Rule("blk.{i}.attn_k_norm", "model.layers.{i}.self_attn.key_layernorm"),
)
MLP = (
    Rule("blk.{i}.ffn_gate", "model.layers.{i}.mlp.gate_proj"),
    Rule("blk.{i}.ffn_up", "model.layers.{i}.mlp.up_proj"),
    Rule("blk.{i}.ffn_down", "model.layers.{i}.mlp.down_proj"),
)
SHARED = "model.layers.{i}.mlp.shared_mlp."


def one_of_all(h: Hyperparameters, name: str, default: Any = None) -> Any:
    """A value that the config may also have once per layer. Errors: Unsupported where layers differ."""
    value = h.config.get(name)
    if isinstance(value, list):
        if any(each != value[0] for each in value):
            raise Unsupported(f"{h.source}: {name} differs from layer to layer; llama.cpp has one number")
        value = value[0] if value else None
    return default if value is None else value


def check(h: Hyperparameters) -> list[Note]:
    """Puts the base that ``alpha`` makes in the place of a "dynamic" scaling, which it is not: it is the same
    at any length. Source: transformers' ``compute_ntk_alpha_rope_parameters``."""
    rope = read_rope(h)
    if rope.kind == "dynamic" and (alpha := rope.own.get("alpha")):
        theta = rope.theta * float(alpha) ** (h.head_dim / (h.head_dim - 2))
        h.config["rope_scaling"] = None
        h.config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    return []


def check_experts(h: Hyperparameters) -> list[Note]:
    width = one_of_all(h, "moe_intermediate_size", h["intermediate_size"])
    shared = one_of_all(h, "num_shared_expert", 1)
    if width != h["intermediate_size"] or shared != 1:
        raise Unsupported(
            f"{h.source}: experts of {width} and {shared} shared ones of {h['intermediate_size']}; "
            "llama.cpp's hunyuan-moe has one shared expert, as wide as the others"
        )
    return check(h)


def kvs_experts(h: Hyperparameters) -> KVs:
    width = h["intermediate_size"]
    return common_kvs(h) | {
        "expert_used_count": (one_of_all(h, "moe_topk"), U32),
        "expert_feed_forward_length": (width, U32),
        "expert_shared_feed_forward_length": (width, U32),
        "expert_shared_count": (1, U32),
    }


DEFAULTS = {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048}
DENSE = Family(
    architecture="hunyuan-dense",
    layer=(*NORMS, *ATTENTION, *MLP),
    ends=ENDS,
    kvs=common_kvs,
    defaults=DEFAULTS,
    check=check,
)
EXPERTS_OF = Family(
    architecture="hunyuan-moe",
    layer=(
        *NORMS,
        *ATTENTION,
        Rule("blk.{i}.ffn_gate_inp", "model.layers.{i}.mlp.gate.wg"),
        EXPERTS,
        Rule("blk.{i}.ffn_gate_shexp", SHARED + "gate_proj"),
        Rule("blk.{i}.ffn_up_shexp", SHARED + "up_proj"),
        Rule("blk.{i}.ffn_down_shexp", SHARED + "down_proj"),
    ),
    ends=ENDS,
    kvs=kvs_experts,
    defaults={**DEFAULTS, "num_experts": 1, "moe_topk": 1},
    check=check_experts,
)


def family(checkpoint: Checkpoint) -> Family:
    return EXPERTS_OF if checkpoint.architecture == "HunYuanMoEV1ForCausalLM" else DENSE
