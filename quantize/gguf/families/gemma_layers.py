"""Gemma 3n and 4: embeddings of their own for each layer, keys and values shared by the last layers, heads of
other widths where all is attended to. Norms multiply by the weight itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import BadInput, Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ARRAY, F32, HEAD, MLP, U32, Family, KVs, OneOf, Rule, common_kvs
from quantize.gguf.families.gemma import TANH, layer_types
from quantize.gguf.families.operations import Operation, Shape, Stack
from quantize.gguf.families.states import always

LAYER = "model.layers.{i}."
NEVER = 1e30  # what llama.cpp divides a frequency by so that nothing is rotated


@dataclass(frozen=True)
class PadRows(Operation):
    """Rows of zeros behind, up to ``rows``: ids of images and sound, which no text holds."""

    rows: int

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        if shapes[0][0] > self.rows:
            raise BadInput(f"{shapes[0][0]} rows, more than vocab_size, {self.rows}")
        return (self.rows, *shapes[0][1:])

    def build(self, arrays: list[np.ndarray]) -> np.ndarray:
        more = self.rows - len(arrays[0])
        return np.pad(arrays[0], ((0, more), (0, 0))) if more else arrays[0]

    def restore(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [array[: shapes[0][0]]]


def padded(h: Hyperparameters) -> Operation:
    return PadRows(int(h["vocab_size"]))


def own_embeddings(h: Hyperparameters, layer: int) -> bool:
    return bool(h.find("hidden_size_per_layer_input"))


def kept(target: str, source: str) -> Rule:
    """A weight that some layers lack: those that share keys and values, or have none of their own."""
    return Rule(target, source, suffixes=(), optional=(".weight",))


ATTENTION = (
    Rule("blk.{i}.attn_norm", LAYER + "input_layernorm"),
    Rule("blk.{i}.attn_q", LAYER + "self_attn.q_proj"),
    kept("blk.{i}.attn_k", LAYER + "self_attn.k_proj"),
    kept("blk.{i}.attn_v", LAYER + "self_attn.v_proj"),
    Rule("blk.{i}.attn_output", LAYER + "self_attn.o_proj"),
    Rule("blk.{i}.attn_q_norm", LAYER + "self_attn.q_norm"),
    kept("blk.{i}.attn_k_norm", LAYER + "self_attn.k_norm"),
    Rule("blk.{i}.post_attention_norm", LAYER + "post_attention_layernorm"),
    Rule("blk.{i}.ffn_norm", LAYER + "pre_feedforward_layernorm"),
    Rule("blk.{i}.post_ffw_norm", LAYER + "post_feedforward_layernorm"),
)
PER_LAYER = (
    Rule("blk.{i}.inp_gate", LAYER + "per_layer_input_gate", when=own_embeddings),
    Rule("blk.{i}.proj", LAYER + "per_layer_projection", when=own_embeddings),
    Rule("blk.{i}.post_norm", LAYER + "post_per_layer_input_norm", when=own_embeddings),
)
ENDS = (
    Rule("token_embd", "model.embed_tokens", padded),
    Rule("per_layer_token_embd", "model.embed_tokens_per_layer", padded, when=own_embeddings),
    Rule("per_layer_model_proj", "model.per_layer_model_projection", when=own_embeddings),
    Rule("per_layer_proj_norm", "model.per_layer_projection_norm", when=own_embeddings),
    Rule("output_norm", "model.norm"),
    HEAD,
)


def windows(h: Hyperparameters, period: int) -> KVs:
    return {
        "attention.sliding_window": (h["sliding_window"], U32),
        "attention.sliding_window_pattern": (layer_types(h, period), ARRAY),
        "attention.shared_kv_layers": (h["num_kv_shared_layers"], U32),
        "embedding_length_per_layer_input": (h.find("hidden_size_per_layer_input") or 0, U32),
    }


def capped(h: Hyperparameters) -> KVs:
    # llama.cpp caps by its own default where the key is absent; a cap this high changes nothing
    return {"final_logit_softcapping": (h.config.get("final_logit_softcapping") or 1e9, F32)}


# Gemma 3n

SPARSE_LAYERS, SPARSITY = 10, 0.95  # built into llama.cpp
BUILT_IN = {"hidden_size_per_layer_input": 256, "laurel_rank": 64}


def one_width(h: Hyperparameters) -> None:
    """Errors: Unsupported where the MLPs differ, as a config may say layer by layer."""
    widths = h.config.get("intermediate_size")
    if isinstance(widths, list):
        if len(set(widths)) != 1:
            raise Unsupported(f"{h.source}: intermediate_size differs between layers")
        h.config["intermediate_size"] = widths[0]


def sparsity(h: Hyperparameters) -> list[float]:
    given = h.find("activation_sparsity_pattern")
    if given is None:
        return [SPARSITY] * SPARSE_LAYERS + [0.0] * (h.layers - SPARSE_LAYERS)
    return [float(each) for each in given] if isinstance(given, list) else [float(given)] * h.layers


def first_shared(h: Hyperparameters) -> int:
    return h.layers - int(h["num_kv_shared_layers"])


def reuses(h: Hyperparameters, period: int) -> None:
    """Errors: Unsupported where layers would reuse others than those that llama.cpp has them reuse."""
    first, sliding = first_shared(h), layer_types(h, period)
    if h["num_kv_shared_layers"] and sliding[max(0, first - 2) : first] != [True, False]:
        raise Unsupported(
            f"{h.source}: the last layers before those that share keys and values must be one with a window "
            "and one without, as llama.cpp expects them"
        )


def check3n(h: Hyperparameters) -> list[Note]:
    one_width(h)
    reuses(h, 5)
    for name, value in BUILT_IN.items():
        if int(h[name]) != value:
            raise Unsupported(f"{h.source}: {name} {h[name]}; llama.cpp's gemma3n has {value} built in")
    expected = [SPARSITY if layer < SPARSE_LAYERS else 0.0 for layer in range(h.layers)]
    if sparsity(h) != expected:
        raise Unsupported(
            f"{h.source}: activation_sparsity_pattern; llama.cpp has {SPARSITY} in the first "
            f"{SPARSE_LAYERS} layers built in"
        )
    if int(h["altup_num_inputs"]) != 4 or not h["altup_correct_scale"]:
        raise Unsupported(f"{h.source}: altup_num_inputs must be 4 and altup_correct_scale true")
    return []


def kvs3n(h: Hyperparameters) -> KVs:
    scales = [NormalDist().inv_cdf(each) if each else -math.inf for each in sparsity(h)]
    return (
        common_kvs(h)
        | windows(h, 5)
        | capped(h)
        | {
            "altup.active_idx": (h["altup_active_idx"], U32),
            "altup.num_inputs": (h["altup_num_inputs"], U32),
            "activation_sparsity_scale": ([max(each, -1e30) for each in scales], ARRAY),
        }
    )


def unshared(h: Hyperparameters, layer: int) -> bool:
    return layer < first_shared(h)


def unused(h: Hyperparameters) -> dict[str, np.ndarray]:
    """What llama.cpp loads of the layers that share keys and values, and computes nothing with."""
    rows = h.kv_heads * h.head_dim
    found: dict[str, np.ndarray] = {}
    for layer in range(first_shared(h), h.layers):
        found |= {
            f"blk.{layer}.attn_k.weight": np.zeros((rows, h.hidden), np.float32),
            f"blk.{layer}.attn_v.weight": np.zeros((rows, h.hidden), np.float32),
            f"blk.{layer}.attn_k_norm.weight": np.zeros(h.head_dim, np.float32),
        }
    return found


def sharing(h: Hyperparameters) -> dict[str, str]:
    """Of the published checkpoint, where those layers have such tensors all the same."""
    why = "its layer uses the keys and values of an earlier one"
    layers = [f"{body}layers.{n}" for body in PREFIXES for n in range(first_shared(h), h.layers)]
    return {f"{layer}.self_attn.{part}.": why for layer in layers for part in KEYS}


def others(h: Hyperparameters) -> int:
    return int(h["altup_num_inputs"]) - 1


STACK = always(Stack())
KEYS = ("k_proj", "v_proj", "k_norm")
ALTUP = LAYER + "altup."
PREFIXES = ("model.", "model.language_model.", "language_model.model.", "")
GEMMA3N = Family(
    architecture="gemma3n",
    layer=(
        *(replace(r, when=unshared) if r.source.endswith(KEYS) else r for r in ATTENTION),
        *MLP,
        *PER_LAYER,
        Rule("blk.{i}.altup_correct_coef", ALTUP + "correction_coefs"),
        Rule("blk.{i}.altup_correct_scale", ALTUP + "correct_output_scale", suffixes=("",)),
        Rule("blk.{i}.altup_predict_coef", ALTUP + "prediction_coefs"),
        Rule("blk.{i}.altup_router", ALTUP + "modality_router"),
        Rule("blk.{i}.altup_router_norm", ALTUP + "router_norm"),
        Rule("blk.{i}.laurel_l", LAYER + "laurel.linear_left"),
        Rule("blk.{i}.laurel_r", LAYER + "laurel.linear_right"),
        Rule("blk.{i}.laurel_post_norm", LAYER + "laurel.post_laurel_norm"),
    ),
    ends=(
        *ENDS,
        Rule("altup_proj", "model.altup_projections.{x}", STACK, count=others),
        Rule("altup_unembd_proj", "model.altup_unembed_projections.{x}", STACK, count=others),
    ),
    kvs=kvs3n,
    leaves=sharing,
    constants=unused,
    defaults={
        "max_position_embeddings": 32768, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256,
        "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0,
        "sliding_window": 512, "tie_word_embeddings": True, "final_logit_softcapping": 30.0,
        "hidden_size_per_layer_input": 256, "num_kv_shared_layers": 15, "altup_active_idx": 0,
        "altup_num_inputs": 4, "altup_correct_scale": True, "laurel_rank": 64,
    },
    check=check3n,
    activations=TANH,
)  # fmt: skip

# Gemma 4


def full_layer(h: Hyperparameters) -> dict[str, Any]:
    """What the config says of the layers that attend to all, in either of its two spellings."""
    each = h.find("per_layer_config") or {}
    first = layer_types(h, 6).index(False) if False in layer_types(h, 6) else -1
    own = dict(each.get(str(first)) or each.get(first) or {})
    own.setdefault("head_dim", h.find("global_head_dim") or 512)
    heads = h.find("num_global_key_value_heads") if h["attention_k_eq_v"] else None
    own.setdefault("num_key_value_heads", heads or h.kv_heads)
    return own


def full_head(h: Hyperparameters) -> int:
    return int(full_layer(h)["head_dim"])


def check4(h: Hyperparameters) -> list[Note]:
    reuses(h, 6)
    if h.find("use_bidirectional_attention") == "all":
        raise Unsupported(f"{h.source}: use_bidirectional_attention, which llama.cpp's gemma4 does not have")
    rope = h.find("rope_parameters") or {}
    own = dict(rope.get("full_attention") or {})
    if own.get("rope_type", "proportional") != "proportional":
        raise Unsupported(f"{h.source}: rope_type {own['rope_type']!r}; a Gemma 4 has proportional")
    # as a tensor of divisors, see below
    h.config["rotated_part"] = float(own.pop("partial_rotary_factor", 0.25))
    own["rope_type"] = "default"
    h.config["rope_parameters"] = {**rope, "full_attention": own}
    return []


def frequencies(h: Hyperparameters) -> dict[str, np.ndarray]:
    """Only a part of each head of the global layers is rotated, its first frequencies."""
    half = full_head(h) // 2
    rotated = int(full_head(h) * h.config["rotated_part"] / 2)
    values = np.full(half, NEVER, np.float32)
    values[:rotated] = 1
    return {"rope_freqs.weight": values}


def kvs4(h: Hyperparameters) -> KVs:
    full, sliding = full_layer(h), layer_types(h, 6)
    found = common_kvs(h) | windows(h, 6) | capped(h)
    if h["use_double_wide_mlp"]:
        first, wide = h.layers - int(h["num_kv_shared_layers"]), int(h["intermediate_size"])
        widths = [wide if layer < first else 2 * wide for layer in range(h.layers)]
        found["feed_forward_length"] = (widths, ARRAY)
    if full["num_key_value_heads"] != h.kv_heads:
        groups = [h.kv_heads if each else int(full["num_key_value_heads"]) for each in sliding]
        found["attention.head_count_kv"] = (groups, ARRAY)
    if h.find("enable_moe_block"):
        found["expert_feed_forward_length"] = (h["moe_intermediate_size"], U32)
    else:
        found.pop("expert_count", None)
        found.pop("expert_used_count", None)
    return found | {
        "attention.key_length": (full_head(h), U32),
        "attention.value_length": (full_head(h), U32),
        "attention.key_length_swa": (h.head_dim, U32),
        "attention.value_length_swa": (h.head_dim, U32),
        "rope.dimension_count": (full_head(h), U32),
        "rope.dimension_count_swa": (h.head_dim, U32),
    }


def mixture(h: Hyperparameters, layer: int) -> bool:
    return bool(h.find("enable_moe_block"))


MOE: tuple[Rule | OneOf, ...] = tuple(
    replace(rule, when=mixture)
    for rule in (
        Rule("blk.{i}.pre_ffw_norm_2", LAYER + "pre_feedforward_layernorm_2"),
        Rule("blk.{i}.post_ffw_norm_1", LAYER + "post_feedforward_layernorm_1"),
        Rule("blk.{i}.post_ffw_norm_2", LAYER + "post_feedforward_layernorm_2"),
        Rule("blk.{i}.ffn_gate_inp", LAYER + "router.proj"),
        Rule("blk.{i}.ffn_gate_inp", LAYER + "router.scale", suffixes=("",), ending=".scale"),
        Rule("blk.{i}.ffn_down_exps", LAYER + "router.per_expert_scale", suffixes=("",), ending=".scale"),
        Rule("blk.{i}.ffn_gate_up_exps", LAYER + "experts.gate_up_proj", suffixes=("",)),
        Rule("blk.{i}.ffn_down_exps", LAYER + "experts.down_proj", suffixes=("",)),
    )
)
GEMMA4 = Family(
    architecture="gemma4",
    layer=(
        *ATTENTION,
        *MLP,
        *MOE,
        *PER_LAYER,
        Rule("blk.{i}.layer_output_scale", LAYER + "layer_scalar", suffixes=("",)),
    ),
    ends=ENDS,
    kvs=kvs4,
    rotated=full_head,
    constants=frequencies,
    defaults={
        "max_position_embeddings": 131072, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0,
        "sliding_window": 512, "tie_word_embeddings": True, "hidden_size_per_layer_input": 256,
        "num_kv_shared_layers": 0, "attention_k_eq_v": False, "use_double_wide_mlp": False,
        "enable_moe_block": False,
    },
    check=check4,
    activations=TANH,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return {
        "Gemma3nForCausalLM": GEMMA3N,
        "Gemma3nForConditionalGeneration": replace(GEMMA3N, multimodal=True),
        "Gemma4ForCausalLM": GEMMA4,
        "Gemma4ForConditionalGeneration": replace(GEMMA4, multimodal=True),
    }[checkpoint.architecture]
