"""Nemotron and Minitron: layer norms that multiply by 1 + weight, an MLP without a gate, half of each head
rotated."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import (
    ATTENTION,
    F32,
    HEAD,
    U32,
    Family,
    KVs,
    Rule,
    common_kvs,
    linear,
)
from quantize.gguf.families.gemma import one
from quantize.gguf.families.phi import rotated


def norm(target: str, source: str) -> tuple[Rule, Rule]:
    return Rule(target, source, one), Rule(target, source, suffixes=(".bias",))


def kvs(h: Hyperparameters) -> KVs:
    common = common_kvs(h)
    common.pop("attention.layer_norm_rms_epsilon", None)
    return common | {
        "vocab_size": (h["vocab_size"], U32),
        "attention.layer_norm_epsilon": (h.need("norm_eps", "layer_norm_eps"), F32),
        "rope.dimension_count": (rotated(h), U32),
    }


FAMILY = Family(
    architecture="nemotron",
    layer=(
        *norm("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm"),
        *norm("blk.{i}.ffn_norm", "model.layers.{i}.post_attention_layernorm"),
        *ATTENTION,
        linear("blk.{i}.ffn_up", "model.layers.{i}.mlp.up_proj"),
        linear("blk.{i}.ffn_down", "model.layers.{i}.mlp.down_proj"),
    ),
    ends=(
        Rule("token_embd", "model.embed_tokens"),
        *norm("output_norm", "model.norm"),
        HEAD,
    ),
    kvs=kvs,
    rotated=rotated,
    defaults={
        "max_position_embeddings": 4096, "norm_eps": 1e-5, "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5, "hidden_act": "relu2",
    },
    activations=("relu2",),
    head="required",
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
