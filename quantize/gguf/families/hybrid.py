"""States beside attention: what such families share. llama.cpp tells their layers apart by the numbers of
key-value heads."""

import math
from collections.abc import Callable
from dataclasses import replace

from quantize.artifact.artifact import Note
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ARRAY, HEAD, U32, KVs, Rule, linear
from quantize.gguf.families.states import groups

MIXER = "model.layers.{i}.mamba."
When = Callable[[Hyperparameters, int], bool]


def attention_layers(h: Hyperparameters) -> list[bool]:
    """True where a layer attends, by any of the ways in which these families say it."""
    if types := h.find("layer_types", "layers_block_type"):
        return [kind in ("attention", "full_attention") for kind in types]
    if pattern := h.find("hybrid_override_pattern"):
        return [letter == "*" for letter in pattern]
    if period := h.find("attn_layer_period"):
        return [index % period == h["attn_layer_offset"] for index in range(h.layers)]
    return [index in (h.find("attn_layer_indices") or ()) for index in range(h.layers)]


def attends(h: Hyperparameters, layer: int) -> bool:
    return attention_layers(h)[layer]


def states(h: Hyperparameters, layer: int) -> bool:
    return not attends(h, layer)


def within(rules: tuple[Rule, ...], when: When) -> tuple[Rule, ...]:
    """Those rules in some of the layers, beside what they say of layers themselves."""

    def both(rule: Rule) -> When:
        own = rule.when
        return when if own is None else lambda h, layer: when(h, layer) and own(h, layer)

    return tuple(replace(rule, when=both(rule)) for rule in rules)


def heads_kv(h: Hyperparameters, here: list[bool]) -> KVs:
    return {"attention.head_count_kv": ([h.kv_heads if each else 0 for each in here], ARRAY)}


def mamba2_kvs(h: Hyperparameters) -> KVs:
    heads = int(h["mamba_n_heads"])
    inner = int(float(h["mamba_expand"]) * h.hidden)
    return {
        "ssm.conv_kernel": (h["mamba_d_conv"], U32),
        "ssm.state_size": (h["mamba_d_state"], U32),
        "ssm.group_count": (groups(h), U32),
        "ssm.inner_size": (inner, U32),
        "ssm.time_step_rank": (heads, U32),
    }


def unclamped(h: Hyperparameters) -> list[Note]:
    """Errors: Unsupported where time steps are held within limits, or a projection has a bias."""
    limits = h.find("time_step_limit") or (0.0, math.inf)
    # transformers writes infinity as an object
    low, high = (float(each["__float__"] if isinstance(each, dict) else each) for each in limits)
    if low > 0 or high < math.inf:
        raise Unsupported(f"{h.source}: time_step_limit [{low}, {high}], which llama.cpp does not have")
    for name in ("mamba_proj_bias", "use_bias", "projectors_bias"):
        if h.find(name):
            raise Unsupported(f"{h.source}: {name}, which llama.cpp does not have")
    return []


FFN = "model.layers.{i}.feed_forward."
FFN_NORMS = (
    Rule("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm"),
    Rule("blk.{i}.ffn_norm", "model.layers.{i}.pre_ff_layernorm"),
)
FINAL = (Rule("token_embd", "model.embed_tokens"), Rule("output_norm", "model.final_layernorm"), HEAD)
MLP = (
    linear("blk.{i}.ffn_gate", FFN + "gate_proj"),
    linear("blk.{i}.ffn_up", FFN + "up_proj"),
    linear("blk.{i}.ffn_down", FFN + "down_proj"),
)
