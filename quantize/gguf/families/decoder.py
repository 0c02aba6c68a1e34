"""The generic decoder: rules that turn checkpoint tensors into GGUF tensors, and the key-values that all
decoders share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from gguf import GGUFValueType

from quantize.artifact.artifact import Note
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.operations import Operation
from quantize.gguf.families.rope import rope_kvs

KVs = dict[str, tuple[Any, GGUFValueType]]
U32, F32, BOOL, STRING, ARRAY = (
    GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.BOOL, GGUFValueType.STRING,
    GGUFValueType.ARRAY,
)  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """``target`` and ``source`` are names without suffix; ``{i}`` is the layer, ``{x}`` in a source runs over
    the experts.

    ``{m}`` counts the layers behind the last one. ``suffixes`` that a source must have; ``optional`` ones it
    may have (bias). ``op`` makes the operation from the config. ``when`` says in which layers the rule
    applies.
    """

    target: str
    source: str
    op: Callable[[Hyperparameters], Operation] | None = None
    suffixes: tuple[str, ...] = (".weight",)
    optional: tuple[str, ...] = ()
    when: Callable[[Hyperparameters, int], bool] | None = None
    count: Callable[[Hyperparameters], int] | None = None  # how many ``{x}``; default: the experts
    #: what the target ends in, where that is not the source's suffix (".bias"; "" for a name with no ending)
    ending: str | None = None


def plain(target: str, source: str, **options: Any) -> Rule:
    """A weight and a bias, both needed."""
    return Rule(target, source, suffixes=(".weight", ".bias"), **options)


def linear(target: str, source: str, op: Callable[[Hyperparameters], Operation] | None = None) -> Rule:
    """A weight and, where the checkpoint has one, its bias."""
    return Rule(target, source, op, optional=(".bias",))


@dataclass(frozen=True)
class OneOf:
    """Layouts that the same tensors come in: the first one is used all of whose sources the checkpoint
    has."""

    options: tuple[tuple[Rule, ...], ...]

    def where(self, when: Callable[[Hyperparameters, int], bool]) -> "OneOf":
        """The same in some of the layers."""
        return OneOf(tuple(tuple(replace(rule, when=when) for rule in option) for option in self.options))


@dataclass(frozen=True)
class Ahead:
    """Layers behind the last one that predict further tokens, which llama.cpp has a place for: at most
    ``most``, with the tensors of ``layer`` each. ``kvs``: what each adds to values that are given layer by
    layer."""

    layer: tuple[Rule | OneOf, ...]
    most: int = 8
    kvs: Callable[[Hyperparameters], Mapping[str, Any]] = lambda h: {}


@dataclass(frozen=True)
class Family:
    """How one kind of HF checkpoint maps to one llama.cpp architecture."""

    architecture: str
    layer: tuple[Rule | OneOf, ...]
    ends: tuple[Rule | OneOf, ...]  # embeddings, last norm, output
    kvs: Callable[[Hyperparameters], KVs]
    #: tensors of frequencies that llama.cpp loads for it; None: nothing is rotated
    rope: frozenset[str] | None = frozenset()
    #: columns of a head that are rotated, where partial_rotary_factor may leave some out
    rotated: Callable[[Hyperparameters], int] | None = None
    # of config keys left out, as the config class has them
    defaults: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Hyperparameters], list[Note]] = lambda h: []
    prefix: str = "model."  # of source names, that some checkpoints leave out (what a base model saved)
    activations: tuple[str, ...] = ("silu",)  # the ones that llama.cpp's graph computes for this architecture
    #: whether llama.cpp has a head apart from the embedding: where it must have one, a tied embedding is
    #: written a second time
    head: Literal["optional", "required", "never"] = "optional"
    #: whether the model is a larger one's text part: tensors of towers and projectors are left out
    multimodal: bool = False
    #: starts of the names of further tensors that llama.cpp has no place for, and why each may be left out
    leaves: Callable[[Hyperparameters], Mapping[str, str]] = lambda h: {}
    #: None: llama.cpp has no place for such layers
    ahead: Ahead | None = None
    #: tensors that come from the config alone
    constants: Callable[[Hyperparameters], Mapping[str, np.ndarray]] = lambda h: {}
    #: ends of the names of tensors that ``kvs`` reads: a file holds them as key-values
    keyed: tuple[str, ...] = ()


#: starts of keys that carry no name of an architecture
OWN_KEYS = ("xielu.",)
HEAD = Rule("output", "lm_head", suffixes=(), optional=(".weight",))
ENDS = (
    Rule("token_embd", "model.embed_tokens"),
    Rule("output_norm", "model.norm"),
    HEAD,
)
NORMS = (
    Rule("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm"),
    Rule("blk.{i}.ffn_norm", "model.layers.{i}.post_attention_layernorm"),
)
ATTENTION = (
    linear("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
    linear("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
    linear("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
    linear("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
)
#: the same, of models that have no biases there
UNBIASED = (
    Rule("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
    Rule("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
    Rule("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
    Rule("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
)
QK_NORMS = (
    Rule("blk.{i}.attn_q_norm", "model.layers.{i}.self_attn.q_norm"),
    Rule("blk.{i}.attn_k_norm", "model.layers.{i}.self_attn.k_norm"),
)
MLP = (
    linear("blk.{i}.ffn_gate", "model.layers.{i}.mlp.gate_proj"),
    linear("blk.{i}.ffn_up", "model.layers.{i}.mlp.up_proj"),
    linear("blk.{i}.ffn_down", "model.layers.{i}.mlp.down_proj"),
)


def common_kvs(h: Hyperparameters) -> KVs:
    """Key-values of a decoder, without the ``{arch}.`` prefix, in the order in which llama.cpp's converter
    writes them."""
    kvs: KVs = {"block_count": (h.layers, U32)}

    def put(key: str, kind: GGUFValueType, *names: str) -> None:
        value = h.find(*names)
        if value is not None:
            kvs[key] = (value, kind)

    put(
        "context_length",
        U32,
        "max_position_embeddings",
        "n_ctx",
        "n_positions",
        "max_length",
        "max_sequence_length",
        "model_max_length",
    )
    put("embedding_length", U32, "hidden_size", "n_embd", "dim")
    put("feed_forward_length", U32, "intermediate_size", "n_inner", "hidden_dim")
    put("attention.head_count", U32, "num_attention_heads", "n_head", "n_heads")
    put("attention.head_count_kv", U32, "num_key_value_heads", "n_kv_heads")
    kvs |= rope_kvs(h)
    put("attention.layer_norm_rms_epsilon", F32, "rms_norm_eps", "norm_eps")
    put("attention.layer_norm_epsilon", F32, "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
    put("expert_count", U32, "num_local_experts", "num_experts", "n_routed_experts")
    put("expert_used_count", U32, "num_experts_per_tok", "num_experts_per_token", "top_k_experts")
    put("expert_group_count", U32, "n_group")
    put("expert_group_used_count", U32, "topk_group")
    gating = h.find("score_function", "scoring_func", "score_func")
    if gating is not None:
        known = {"softmax": 1, "sigmoid": 2}
        if gating not in known:
            raise Unsupported(
                f"{h.source}: expert scoring function {gating!r} "
                f"is not one llama.cpp knows ({', '.join(known)})"
            )
        kvs["expert_gating_func"] = (known[gating], U32)
    put("attention.key_length", U32, "head_dim")
    put("attention.value_length", U32, "head_dim")
    return kvs
