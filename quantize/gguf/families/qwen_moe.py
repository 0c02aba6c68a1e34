"""Qwen 2 MoE (1.5, 2: shared expert) and Qwen 3 MoE. Experts come one by one, or fused as transformers 5
holds them."""

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import (
    ATTENTION,
    ENDS,
    NORMS,
    QK_NORMS,
    U32,
    Family,
    KVs,
    OneOf,
    Rule,
    common_kvs,
)
from quantize.gguf.families.mixtral import fused, stack
from quantize.gguf.families.qwen import window_note

EXPERT = "model.layers.{i}.mlp.experts.{x}."
EXPERTS = OneOf(
    (
        (
            Rule("blk.{i}.ffn_down_exps", EXPERT + "down_proj", stack),
            Rule("blk.{i}.ffn_gate_exps", EXPERT + "gate_proj", stack),
            Rule("blk.{i}.ffn_up_exps", EXPERT + "up_proj", stack),
        ),
        fused("model.layers.{i}.mlp.experts."),
    )
)
ROUTER = Rule("blk.{i}.ffn_gate_inp", "model.layers.{i}.mlp.gate")
SHARED = (
    Rule("blk.{i}.ffn_gate_inp_shexp", "model.layers.{i}.mlp.shared_expert_gate"),
    Rule("blk.{i}.ffn_gate_shexp", "model.layers.{i}.mlp.shared_expert.gate_proj"),
    Rule("blk.{i}.ffn_up_shexp", "model.layers.{i}.mlp.shared_expert.up_proj"),
    Rule("blk.{i}.ffn_down_shexp", "model.layers.{i}.mlp.shared_expert.down_proj"),
)
DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 32768,
    "norm_topk_prob": False,
}


def kvs(h: Hyperparameters) -> KVs:
    kvs = common_kvs(h) | {"expert_feed_forward_length": (h["moe_intermediate_size"], U32)}
    if (shared := h.find("shared_expert_intermediate_size")) is not None:
        kvs["expert_shared_feed_forward_length"] = (shared, U32)
    return kvs


def check(h: Hyperparameters, normalised: bool) -> list[Note]:
    if h.find("mlp_only_layers") or (h.find("decoder_sparse_step") or 1) != 1:
        raise Unsupported(
            f"{h.source}: some layers have no experts (mlp_only_layers, "
            "decoder_sparse_step); llama.cpp expects them in all"
        )
    if bool(h.find("norm_topk_prob")) != normalised:
        raise Unsupported(
            f"{h.source}: norm_topk_prob is {h.find('norm_topk_prob')}; "
            f"llama.cpp computes this family with {normalised}"
        )
    return window_note(h)


def check_qwen2(h: Hyperparameters) -> list[Note]:
    return check(h, normalised=False)


def check_qwen3(h: Hyperparameters) -> list[Note]:
    return check(h, normalised=True)


QWEN2_MOE = Family(
    architecture="qwen2moe",
    layer=(*NORMS, *ATTENTION, ROUTER, EXPERTS, *SHARED),
    ends=ENDS,
    kvs=kvs,
    defaults={
        **DEFAULTS, "num_key_value_heads": 16, "num_experts": 60, "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
    check=check_qwen2,
    head="required",
)  # fmt: skip
QWEN3_MOE = Family(
    architecture="qwen3moe",
    layer=(*NORMS, *ATTENTION, *QK_NORMS, ROUTER, EXPERTS),
    ends=ENDS,
    kvs=kvs,
    defaults={**DEFAULTS, "num_key_value_heads": 4, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    check=check_qwen3,
)


def family(checkpoint: Checkpoint) -> Family:
    return QWEN2_MOE if checkpoint.architecture == "Qwen2MoeForCausalLM" else QWEN3_MOE
