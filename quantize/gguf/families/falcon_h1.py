"""Falcon H1: attention and Mamba 2 side by side in every layer. llama.cpp has no keys for its multipliers:
the weights are written with them."""

from collections.abc import Callable
from dataclasses import replace

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import U32, Family, KVs, Rule, common_kvs
from quantize.gguf.families.hybrid import FFN, FFN_NORMS, MIXER, unclamped
from quantize.gguf.families.operations import COPY, Operation
from quantize.gguf.families.states import Scale, groups, mamba2

SELF = "model.layers.{i}.self_attn."


def scaled(factor: Callable[[Hyperparameters], float]) -> Callable[[Hyperparameters], Operation]:
    def operation(h: Hyperparameters) -> Operation:
        value = float(factor(h))
        return COPY if value == 1 else Scale(((value, None),))

    return operation


def by(*names: str) -> Callable[[Hyperparameters], Operation]:
    """Times the product of those multipliers."""

    def product(h: Hyperparameters) -> float:
        value = 1.0
        for name in names:
            value *= float(h[name])
        return value

    return scaled(product)


def projections(h: Hyperparameters) -> Operation:
    """Rows of gate, values, B, C and time steps, each with its own."""
    inner, states = int(h["mamba_d_ssm"]), groups(h) * int(h["mamba_d_state"])
    counts = (inner, inner, states, states, int(h["mamba_n_heads"]))
    factors = [float(h["ssm_in_multiplier"]) * float(each) for each in h["ssm_multipliers"]]
    if all(factor == 1 for factor in factors):
        return COPY
    return Scale(tuple(zip(factors, counts, strict=True)))


def kvs(h: Hyperparameters) -> KVs:
    return common_kvs(h) | {
        "vocab_size": (h["vocab_size"], U32),
        "ssm.conv_kernel": (h["mamba_d_conv"], U32),
        "ssm.inner_size": (h["mamba_d_ssm"], U32),
        "ssm.state_size": (h["mamba_d_state"], U32),
        "ssm.time_step_rank": (h["mamba_n_heads"], U32),
        "ssm.group_count": (groups(h), U32),
    }


def check(h: Hyperparameters) -> list[Note]:
    if h["mamba_rms_norm"] and h["mamba_norm_before_gate"]:
        raise Unsupported(f"{h.source}: mamba_norm_before_gate; llama.cpp norms behind the gate")
    if h.find("tie_word_embeddings") and float(h["embedding_multiplier"]) != float(h["lm_head_multiplier"]):
        raise Unsupported(
            f"{h.source}: a tied head with another multiplier than the embedding's, "
            "which one tensor of a GGUF cannot hold"
        )
    return unclamped(h)


def normed(h: Hyperparameters, layer: int) -> bool:
    return bool(h["mamba_rms_norm"])


def mamba_rules() -> tuple[Rule, ...]:
    found = []
    for rule in mamba2(MIXER):
        own = {"ssm_in": projections, "ssm_out": by("ssm_out_multiplier")}.get(rule.target.split(".")[-1])
        when = normed if rule.target.endswith("ssm_norm") else None
        found.append(
            Rule(
                rule.target,
                rule.source,
                own or rule.op,
                rule.suffixes,
                rule.optional,
                when,
                ending=rule.ending,
            )
        )
    return tuple(found)


FAMILY = Family(
    architecture="falcon-h1",
    layer=(
        FFN_NORMS[0],
        replace(FFN_NORMS[1], ending=""),  # the name that llama.cpp looks for here
        Rule("blk.{i}.attn_q", SELF + "q_proj", by("attention_in_multiplier")),
        Rule("blk.{i}.attn_k", SELF + "k_proj", by("attention_in_multiplier", "key_multiplier")),
        Rule("blk.{i}.attn_v", SELF + "v_proj", by("attention_in_multiplier")),
        Rule("blk.{i}.attn_output", SELF + "o_proj", by("attention_out_multiplier")),
        *mamba_rules(),
        Rule("blk.{i}.ffn_gate", FFN + "gate_proj", scaled(lambda h: h["mlp_multipliers"][0])),
        Rule("blk.{i}.ffn_up", FFN + "up_proj"),
        Rule("blk.{i}.ffn_down", FFN + "down_proj", scaled(lambda h: h["mlp_multipliers"][1])),
    ),
    ends=(
        Rule("token_embd", "model.embed_tokens", by("embedding_multiplier")),
        Rule("output_norm", "model.final_layernorm"),
        Rule("output", "lm_head", by("lm_head_multiplier"), suffixes=(), optional=(".weight",)),
    ),
    kvs=kvs,
    defaults={
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 8192,
        "num_key_value_heads": 8, "mamba_d_ssm": 1024, "mamba_n_heads": 128, "mamba_n_groups": 1,
        "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_rms_norm": False, "mamba_norm_before_gate": True,
        "lm_head_multiplier": 1.0, "embedding_multiplier": 1.0, "key_multiplier": 1.0,
        "attention_in_multiplier": 1.0, "attention_out_multiplier": 1.0, "ssm_in_multiplier": 1.0,
        "ssm_out_multiplier": 1.0, "mlp_multipliers": [1.0, 1.0], "ssm_multipliers": [1.0] * 5,
    },
    check=check,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
