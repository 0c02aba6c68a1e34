"""Mixtral: Llama's attention, experts stacked into one tensor."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ENDS, NORMS, Family, OneOf, Rule
from quantize.gguf.families.llama import DEFAULTS, PERMUTED_ATTENTION, ROPE, kvs, window_note
from quantize.gguf.families.operations import Operation, Stack


def stack(h: Hyperparameters) -> Operation:
    return Stack()


EXPERT = "model.layers.{i}.block_sparse_moe.experts.{x}."
FAMILY = Family(
    architecture="llama",
    layer=(
        *NORMS,
        *PERMUTED_ATTENTION,
        OneOf(
            (
                (Rule("blk.{i}.ffn_gate_inp", "model.layers.{i}.block_sparse_moe.gate"),),
                (Rule("blk.{i}.ffn_gate_inp", "model.layers.{i}.mlp.gate"),),
            )
        ),
        Rule("blk.{i}.ffn_gate_exps", EXPERT + "w1", stack),
        Rule("blk.{i}.ffn_down_exps", EXPERT + "w2", stack),
        Rule("blk.{i}.ffn_up_exps", EXPERT + "w3", stack),
    ),
    ends=ENDS,
    kvs=kvs,
    rope=ROPE,
    defaults={
        **DEFAULTS, "max_position_embeddings": 131072, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_experts_per_tok": 2, "num_local_experts": 8,
    },
    check=window_note,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
