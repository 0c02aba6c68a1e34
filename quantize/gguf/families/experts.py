"""What mixtures share: which layers have experts, the bias of their choice, one wide shared expert, and the
layers that predict further tokens."""

from dataclasses import replace

from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import BOOL, F32, U32, KVs, OneOf, Rule
from quantize.gguf.families.qwen_moe import EXPERTS, ROUTER

SOFTMAX, SIGMOID = 1, 2  # llama.cpp's numbers


def dense_layers(h: Hyperparameters) -> list[bool]:
    """True where a layer has one MLP instead of experts."""
    types = h.find("mlp_layer_types")
    if types:
        return [kind == "dense" for kind in types]
    first = int(h.find("first_k_dense_replace", "first_last_k_dense_replace", "num_dense_layers") or 0)
    return [index < first for index in range(h.layers)]


def dense(h: Hyperparameters, layer: int) -> bool:
    return dense_layers(h)[layer]


def sparse(h: Hyperparameters, layer: int) -> bool:
    return not dense(h, layer)


def leading(h: Hyperparameters) -> int:
    """How many layers before the first one with experts. Errors: Unsupported where dense ones come later."""
    layers = dense_layers(h)
    count = sum(layers)
    if not all(layers[:count]):
        raise Unsupported(f"{h.source}: layers without experts after one with them, which llama.cpp refuses")
    return count


MLP = (
    Rule("blk.{i}.ffn_gate", "model.layers.{i}.mlp.gate_proj", when=dense),
    Rule("blk.{i}.ffn_up", "model.layers.{i}.mlp.up_proj", when=dense),
    Rule("blk.{i}.ffn_down", "model.layers.{i}.mlp.down_proj", when=dense),
)
CHOICE = replace(ROUTER, when=sparse)
STACKED = EXPERTS.where(sparse)


def bias(source: str, ending: str = ".bias") -> Rule:
    """The correction that is added to the scores by which experts are chosen."""
    return Rule(
        "blk.{i}.exp_probs_b", "model.layers.{i}.mlp." + source, suffixes=("",), when=sparse, ending=ending
    )


def shared(source: str) -> tuple[Rule, ...]:
    prefix = f"model.layers.{{i}}.mlp.{source}."
    return (
        Rule("blk.{i}.ffn_gate_shexp", prefix + "gate_proj", when=sparse),
        Rule("blk.{i}.ffn_up_shexp", prefix + "up_proj", when=sparse),
        Rule("blk.{i}.ffn_down_shexp", prefix + "down_proj", when=sparse),
    )


def mixture(
    correction: str, wide: str, *, choice: Rule = CHOICE, ending: str = ".bias"
) -> tuple[Rule | OneOf, ...]:
    """Dense layers first; then a router that scores by sigmoid, with a ``correction`` of its choice, stacked
    experts, and a ``wide`` one that all tokens share."""
    return (*MLP, choice, bias(correction, ending), STACKED, *shared(wide))


def mixture_kvs(h: Hyperparameters, scale: str = "routed_scaling_factor", normed: bool = True) -> KVs:
    """Of that; ``scale`` names the factor of what the experts give, ``normed`` says whether their shares add
    up to it."""
    return {
        "expert_gating_func": (SIGMOID, U32),
        "expert_feed_forward_length": (h["moe_intermediate_size"], U32),
        "expert_weights_norm": (normed, BOOL),
        "expert_weights_scale": (h[scale], F32),
    }


def predicting(h: Hyperparameters) -> dict[str, str]:
    """Layers behind the last one (and the ``mtp`` module of some), which predict further tokens."""
    why = "they predict further tokens; logits do not depend on them"
    count = int(h.find("num_nextn_predict_layers") or 0)
    return {f"model.layers.{h.layers + ahead}.": why for ahead in range(count)} | {
        "mtp.": why,
        "model.mtp.": why,
    }
