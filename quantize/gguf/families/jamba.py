"""Jamba: Mamba beside attention without positions, every other MLP a mixture."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ATTENTION, U32, Family, KVs, Rule, common_kvs
from quantize.gguf.families.hybrid import (
    FFN,
    FFN_NORMS,
    FINAL,
    MIXER,
    MLP,
    attends,
    attention_layers,
    heads_kv,
    states,
    unclamped,
    within,
)
from quantize.gguf.families.operations import Stack
from quantize.gguf.families.states import always, mamba1


def sparse(h: Hyperparameters, layer: int) -> bool:
    return h.experts > 1 and layer % int(h["expert_layer_period"]) == int(h["expert_layer_offset"])


def dense(h: Hyperparameters, layer: int) -> bool:
    return not sparse(h, layer)


def kvs(h: Hyperparameters) -> KVs:
    inner = int(h["mamba_expand"]) * h.hidden
    rank = h.find("mamba_dt_rank")
    return (
        {key: value for key, value in common_kvs(h).items() if not key.startswith("rope.")}
        | heads_kv(h, attention_layers(h))
        | {
            "ssm.conv_kernel": (h["mamba_d_conv"], U32),
            "ssm.inner_size": (inner, U32),
            "ssm.state_size": (h["mamba_d_state"], U32),
            "ssm.time_step_rank": (-(-h.hidden // 16) if rank in (None, "auto") else int(rank), U32),
        }
    )


STACK = always(Stack())
EXPERT = FFN + "experts.{x}."
FAMILY = Family(
    architecture="jamba",
    layer=(
        *FFN_NORMS,
        *within(ATTENTION, attends),
        *within(mamba1(MIXER), states),
        Rule("blk.{i}.ssm_dt_norm", MIXER + "dt_layernorm", when=states),
        Rule("blk.{i}.ssm_b_norm", MIXER + "b_layernorm", when=states),
        Rule("blk.{i}.ssm_c_norm", MIXER + "c_layernorm", when=states),
        *within(MLP, dense),
        Rule("blk.{i}.ffn_gate_inp", FFN + "router", when=sparse),
        Rule("blk.{i}.ffn_gate_exps", EXPERT + "gate_proj", STACK, when=sparse),
        Rule("blk.{i}.ffn_up_exps", EXPERT + "up_proj", STACK, when=sparse),
        Rule("blk.{i}.ffn_down_exps", EXPERT + "down_proj", STACK, when=sparse),
    ),
    ends=FINAL,
    kvs=kvs,
    rope=None,
    defaults={
        "rms_norm_eps": 1e-6, "max_position_embeddings": 262144, "num_key_value_heads": 8,
        "num_experts": 16, "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1,
        "attn_layer_period": 8, "attn_layer_offset": 4, "mamba_d_state": 16, "mamba_d_conv": 4,
        "mamba_expand": 2,
    },
    check=unclamped,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
