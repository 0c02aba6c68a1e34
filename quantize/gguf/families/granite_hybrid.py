"""Granite 4: Mamba 2 beside attention, or attention alone under the same name; experts beside a shared MLP,
or that one alone."""

from dataclasses import replace

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import BOOL, ENDS, NORMS, U32, Family, KVs, Rule
from quantize.gguf.families.granite import GRANITE, granite_kvs
from quantize.gguf.families.granite_moe import MOE, SHARED, SHARED_MLP, Half
from quantize.gguf.families.hybrid import (
    MIXER,
    attends,
    attention_layers,
    heads_kv,
    mamba2_kvs,
    states,
    unclamped,
    within,
)
from quantize.gguf.families.llama import PERMUTED_ATTENTION
from quantize.gguf.families.states import mamba2


def mixture(h: Hyperparameters, layer: int) -> bool:
    return bool(h.experts)


def single(h: Hyperparameters, layer: int) -> bool:
    return not h.experts


WIDTH = "shared_intermediate_size"
GRANITE_MLP = (
    *within((*MOE, *SHARED), mixture),
    Rule("blk.{i}.ffn_gate", SHARED_MLP + "input_linear", Half(0, WIDTH), when=single),
    Rule("blk.{i}.ffn_up", SHARED_MLP + "input_linear", Half(1, WIDTH), when=single),
    Rule("blk.{i}.ffn_down", SHARED_MLP + "output_linear", when=single),
)


def rotates(h: Hyperparameters) -> bool:
    return bool(h.find("position_embedding_type") == "rope")


def granite_hybrid_kvs(h: Hyperparameters) -> KVs:
    here = attention_layers(h)
    found = granite_kvs(h)
    if h.experts:
        found["expert_shared_feed_forward_length"] = (h[WIDTH], U32)
    else:
        for key in ("expert_count", "expert_used_count"):
            found.pop(key, None)
        found["feed_forward_length"] = (h[WIDTH], U32)
    found["rope.scaling.finetuned"] = (rotates(h), BOOL)  # how llama.cpp knows whether to rotate
    if all(here):
        return found
    return found | heads_kv(h, here) | mamba2_kvs(h)


GRANITE_HYBRID = Family(
    architecture="granitehybrid",
    layer=(*NORMS, *within(PERMUTED_ATTENTION, attends), *within(mamba2(MIXER), states), *GRANITE_MLP),
    ends=ENDS,
    kvs=granite_hybrid_kvs,
    defaults={
        **GRANITE.defaults, "num_local_experts": 8, "num_experts_per_tok": 2, WIDTH: 1024,
        "mamba_n_heads": 128, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_expand": 2,
    },
    check=unclamped,
)  # fmt: skip


def granite_hybrid(config: Hyperparameters) -> Family:
    """The family of such a config: llama.cpp has other names for those that only attend."""
    if not all(attention_layers(config)):
        return GRANITE_HYBRID
    return replace(GRANITE_HYBRID, architecture="granitemoe" if config.experts else "granite")


def family(checkpoint: Checkpoint) -> Family:
    return granite_hybrid(Hyperparameters(checkpoint.config, GRANITE_HYBRID.defaults))
