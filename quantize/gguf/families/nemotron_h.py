"""Nemotron H and Nemotron 3: each layer is one thing, Mamba 2, attention without positions, an MLP or
experts, none of the last two with a gate."""

from dataclasses import replace
from typing import Any

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import (
    ARRAY,
    BOOL,
    F32,
    HEAD,
    U32,
    Ahead,
    Family,
    KVs,
    OneOf,
    Rule,
    common_kvs,
    linear,
)
from quantize.gguf.families.hybrid import unclamped, within
from quantize.gguf.families.operations import Stack
from quantize.gguf.families.states import always, groups, mamba2

LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
NAMES = {"linear_attention": "mamba", "full_attention": "attention"}
MIXER = "backbone.layers.{i}.mixer."


def kinds(h: Hyperparameters) -> list[str]:
    """Of each layer: mamba, attention, mlp or moe."""
    if pattern := h.find("hybrid_override_pattern"):
        return [LETTERS.get(letter, letter) for letter in pattern]
    return [NAMES.get(kind, kind) for kind in h.need("layers_block_type", "layer_types")]


class Kind:
    def __init__(self, kind: str):
        self.kind = kind

    def __call__(self, h: Hyperparameters, layer: int) -> bool:
        return kinds(h)[layer] == self.kind


ATTENTION = (
    linear("blk.{i}.attn_q", MIXER + "q_proj"),
    linear("blk.{i}.attn_k", MIXER + "k_proj"),
    linear("blk.{i}.attn_v", MIXER + "v_proj"),
    linear("blk.{i}.attn_output", MIXER + "o_proj"),
)
MLP = (linear("blk.{i}.ffn_up", MIXER + "up_proj"), linear("blk.{i}.ffn_down", MIXER + "down_proj"))
MOE = (
    Rule("blk.{i}.ffn_gate_inp", MIXER + "gate"),
    Rule("blk.{i}.exp_probs_b", MIXER + "gate.e_score_correction_bias", suffixes=("",), ending=".bias"),
    Rule("blk.{i}.ffn_up_shexp", MIXER + "shared_experts.up_proj"),
    Rule("blk.{i}.ffn_down_shexp", MIXER + "shared_experts.down_proj"),
)
STACK = always(Stack())
EXPERTS = OneOf(
    (
        (
            Rule("blk.{i}.ffn_up_exps", MIXER + "experts.{x}.up_proj", STACK),
            Rule("blk.{i}.ffn_down_exps", MIXER + "experts.{x}.down_proj", STACK),
        ),
        (
            Rule("blk.{i}.ffn_up_exps", MIXER + "experts.up_proj", suffixes=("",)),
            Rule("blk.{i}.ffn_down_exps", MIXER + "experts.down_proj", suffixes=("",)),
        ),
    )
).where(Kind("moe"))


def kvs(h: Hyperparameters) -> KVs:
    layers = kinds(h)
    inner = int(h["mamba_num_heads"]) * int(h["mamba_head_dim"])
    wide = {"mlp": h["intermediate_size"], "moe": h["moe_intermediate_size"]}
    found = {key: value for key, value in common_kvs(h).items() if not key.startswith(("rope.", "expert_"))}
    found |= {
        "feed_forward_length": ([int(wide.get(kind, 0)) for kind in layers], ARRAY),
        "attention.head_count_kv": ([h.kv_heads if kind == "attention" else 0 for kind in layers], ARRAY),
        "attention.layer_norm_rms_epsilon": (h["layer_norm_epsilon"], F32),
        "vocab_size": (h["vocab_size"], U32),
        "ssm.conv_kernel": (h["conv_kernel"], U32),
        "ssm.state_size": (h["ssm_state_size"], U32),
        "ssm.group_count": (groups(h), U32),
        "ssm.inner_size": (inner, U32),
        "ssm.time_step_rank": (h["mamba_num_heads"], U32),
    }
    if "moe" in layers:
        found |= {
            "expert_count": (h["n_routed_experts"], U32),
            "expert_used_count": (h["num_experts_per_tok"], U32),
            "expert_feed_forward_length": (h["moe_intermediate_size"], U32),
            "expert_shared_feed_forward_length": (h["moe_shared_expert_intermediate_size"], U32),
            "expert_shared_count": (h["n_shared_experts"], U32),
            "expert_weights_norm": (bool(h["norm_topk_prob"]), BOOL),
            "expert_weights_scale": (h["routed_scaling_factor"], F32),
            "expert_group_count": (h["n_group"], U32),
        }
    return found


def check(h: Hyperparameters) -> list[Note]:
    layers = kinds(h)
    h.config["num_hidden_layers"] = len(layers)
    if odd := sorted(set(layers) - set(LETTERS.values())):
        raise Unsupported(
            f"{h.source}: layers of kind {odd[0]!r}; llama.cpp has {', '.join(LETTERS.values())}"
        )
    if "mlp" in layers and "moe" in layers:
        raise Unsupported(
            f"{h.source}: layers with one MLP beside layers with experts, which llama.cpp refuses"
        )
    if h["mlp_hidden_act"] != "relu2":
        raise Unsupported(f"{h.source}: activation {h['mlp_hidden_act']!r}, but llama.cpp computes relu2")
    if h.find("moe_latent_size") or int(h["n_group"]) != 1:
        raise Unsupported(f"{h.source}: moe_latent_size and n_group are not carried over yet")
    return unclamped(h)


def _moved(rules: tuple[Rule | OneOf, ...], prefix: str) -> tuple[Rule | OneOf, ...]:
    def one(rule: Rule) -> Rule:
        return replace(rule, source=rule.source.replace("backbone.layers.{i}.", prefix), when=None)

    return tuple(
        one(rule) if isinstance(rule, Rule) else OneOf(tuple(tuple(map(one, each)) for each in rule.options))
        for rule in rules
    )


FIRST, SECOND = "mtp.layers.0.", "mtp.layers.1."
#: two layers of the checkpoint, attention and experts, which are one in llama.cpp
LATER = (
    Rule("blk.{i}.nextn.enorm", FIRST + "enorm"),
    Rule("blk.{i}.nextn.hnorm", FIRST + "hnorm"),
    Rule("blk.{i}.nextn.eh_proj", FIRST + "eh_proj"),
    Rule("blk.{i}.attn_norm", FIRST + "norm"),
    *_moved(ATTENTION, FIRST),
    Rule("blk.{i}.post_attention_norm", SECOND + "norm"),
    *_moved((*MOE, EXPERTS), SECOND),
    Rule("blk.{i}.nextn.shared_head_norm", SECOND + "final_layernorm"),
)


def later_kvs(h: Hyperparameters) -> dict[str, Any]:
    return {"feed_forward_length": int(h["moe_intermediate_size"]), "attention.head_count_kv": h.kv_heads}


def predicting(h: Hyperparameters) -> dict[str, str]:
    return {"mtp.": "multi-token prediction: the next token's logits do not depend on it"}


NEMOTRON_H = Family(
    architecture="nemotron_h",
    layer=(
        Rule("blk.{i}.attn_norm", "backbone.layers.{i}.norm"),
        *within(mamba2(MIXER), Kind("mamba")),
        *within(ATTENTION, Kind("attention")),
        *within(MLP, Kind("mlp")),
        *within(MOE, Kind("moe")),
        EXPERTS,
    ),
    ends=(Rule("token_embd", "backbone.embeddings"), Rule("output_norm", "backbone.norm_f"), HEAD),
    kvs=kvs,
    rope=None,
    defaults={
        "layer_norm_epsilon": 1e-5, "max_position_embeddings": 4096, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 21504, "mlp_hidden_act": "relu2", "ssm_state_size": 128,
        "mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8, "conv_kernel": 4,
        "n_routed_experts": 8, "n_shared_experts": 1, "moe_intermediate_size": 7688,
        "moe_shared_expert_intermediate_size": 7688, "num_experts_per_tok": 2, "routed_scaling_factor": 1.0,
        "n_group": 1, "norm_topk_prob": True,
    },
    check=check,
    prefix="backbone.",
    leaves=predicting,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    if "moe" not in kinds(Hyperparameters(checkpoint.config, {}, str(getattr(checkpoint, "source", "")))):
        return NEMOTRON_H
    ahead = Ahead(LATER, most=1, kvs=later_kvs)
    return replace(NEMOTRON_H, architecture="nemotron_h_moe", ahead=ahead)
