"""Mixtral: Llama's attention, experts stacked into one tensor, or fused already."""

from collections.abc import Callable

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ENDS, NORMS, Family, OneOf, Rule
from quantize.gguf.families.llama import DEFAULTS, PERMUTED_ATTENTION, ROPE, kvs, window_note
from quantize.gguf.families.operations import Operation, Part, Stack


def stack(h: Hyperparameters) -> Operation:
    return Stack()


def half(index: int) -> Callable[[Hyperparameters], Operation]:
    """Rows of gate (0) or up (1) of fused experts (experts, 2 * ff, hidden)."""

    def rows(h: Hyperparameters) -> Operation:
        width = int(h.need("moe_intermediate_size", "intermediate_size"))
        return Part((2, width), 0, index, index + 1, lead=1)

    return rows


def fused(prefix: str) -> tuple[Rule, ...]:
    """Experts as transformers 5 holds them: gate and up in one tensor of three axes, down in another."""
    return (
        Rule("blk.{i}.ffn_down_exps", prefix + "down_proj", suffixes=("",)),
        Rule("blk.{i}.ffn_gate_exps", prefix + "gate_up_proj", half(0), suffixes=("",)),
        Rule("blk.{i}.ffn_up_exps", prefix + "gate_up_proj", half(1), suffixes=("",)),
    )


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
        OneOf(
            (
                (
                    Rule("blk.{i}.ffn_gate_exps", EXPERT + "w1", stack),
                    Rule("blk.{i}.ffn_down_exps", EXPERT + "w2", stack),
                    Rule("blk.{i}.ffn_up_exps", EXPERT + "w3", stack),
                ),
                fused("model.layers.{i}.mlp.experts."),
            )
        ),
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
