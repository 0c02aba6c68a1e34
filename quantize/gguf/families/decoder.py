"""The generic decoder: rules that turn checkpoint tensors into GGUF tensors, and the key-values that all
decoders share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from gguf import GGUFValueType

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import BUFFERS, Checkpoint
from quantize.errors import BadInput, Unsupported
from quantize.gguf.families.base import FamilyPlan, Mapped
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.heads import settle_head
from quantize.gguf.families.multimodal import is_other, others_note, text_config, text_name
from quantize.gguf.families.operations import COPY, Operation
from quantize.gguf.families.pooling import pooling_kvs
from quantize.gguf.families.rope import read_rope, rope_kvs, rope_tensors

KVs = dict[str, tuple[Any, GGUFValueType]]
U32, F32, BOOL, STRING, ARRAY = (
    GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.BOOL, GGUFValueType.STRING,
    GGUFValueType.ARRAY,
)  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """``target`` and ``source`` are names without suffix; ``{i}`` is the layer, ``{x}`` in a source runs over
    the experts.

    ``suffixes`` that a source must have; ``optional`` ones it may have (bias). ``op`` makes the operation
    from the config. ``when`` says in which layers the rule applies.
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


def make_plan(family: Family, checkpoint: Checkpoint) -> FamilyPlan:
    """Apply ``family`` to the headers of ``checkpoint``. Errors: as ``families.plan``."""
    config = text_config(checkpoint.config) if family.multimodal else checkpoint.config
    h = Hyperparameters(config, family.defaults, checkpoint.source)
    _check_activation(family, h)
    notes = list(family.check(h))
    position = {name: index for index, name in enumerate(checkpoint.tensors)}
    found: list[tuple[int, Mapped]] = []
    if family.rope is not None:
        frequencies, said = rope_tensors(h, _rotated(family, h), family.rope, family.architecture)
        notes += said
        found += [(-1, _constant(name, array)) for name, array in frequencies.items()]
    found += [(-1, _constant(name, array)) for name, array in family.constants(h).items()]
    used: set[str] = set()

    def resolve(name: str) -> str:
        if family.multimodal:
            name = text_name(name, checkpoint.tensors)
        short = name.removeprefix(family.prefix)
        return (
            short
            if family.prefix and name not in checkpoint.tensors and short in checkpoint.tensors
            else name
        )

    def names(rule: Rule, suffix: str, layer: int) -> tuple[str, ...]:
        return tuple(resolve(name) for name in source_names(rule, suffix, layer, h))

    def apply(rule: Rule, layer: int) -> None:
        if rule.when and not rule.when(h, layer):
            return
        for suffix in (*rule.suffixes, *rule.optional):
            sources = names(rule, suffix, layer)
            if not sources:
                raise Unsupported(
                    f"{checkpoint.source}: config.json names no "
                    f"experts, which {checkpoint.architecture} needs"
                )
            missing = [name for name in sources if name not in checkpoint.tensors]
            if missing and suffix in rule.optional and len(missing) == len(sources):
                continue
            if missing:
                raise Unsupported(
                    f"{checkpoint.source}: tensor {missing[0]} is missing, which "
                    f"{checkpoint.architecture} needs; fetch the whole checkpoint"
                )
            target = target_name(rule, suffix, layer)
            operation = rule.op(h) if rule.op else COPY
            found.append(
                (max(position[name] for name in sources), _mapped(target, sources, operation, checkpoint))
            )
            used.update(sources)

    def choose(one: OneOf, layer: int) -> tuple[Rule, ...]:
        for rules in one.options:
            needed = [
                n
                for r in rules
                if not r.when or r.when(h, layer)
                for s in r.suffixes
                for n in names(r, s, layer)
            ]
            if needed and all(name in checkpoint.tensors for name in needed):
                return rules
        return one.options[0]

    for entry in family.ends:
        for rule in (entry,) if isinstance(entry, Rule) else choose(entry, 0):
            apply(rule, 0)
    for layer in range(h.layers):
        for entry in family.layer:
            for rule in (entry,) if isinstance(entry, Rule) else choose(entry, layer):
                apply(rule, layer)
    left_over = [name for name in checkpoint.tensors if name not in used and not name.endswith(BUFFERS)]
    left_out = set(left_over)
    left_over = [name for name in left_over if not name.endswith(family.keyed)]
    if family.multimodal:
        notes += others_note(name for name in left_over if is_other(name))
        left_over = [name for name in left_over if not is_other(name)]
    for start, why in family.leaves(h).items():
        if gone := [name for name in left_over if name.startswith(start)]:
            notes.append(Note(tensor=f"{start}*", what=f"{len(gone)} tensors left out", why=why))
            left_over = [name for name in left_over if name not in gone]
    left_out -= set(left_over)
    if left_over:
        raise Unsupported(
            f"{checkpoint.source}: tensor {left_over[0]} has no place in llama.cpp's {family.architecture} "
            f"({h.layers} layers by the config); dropping it would change the model"
        )
    found, said = settle_head(
        found, family.architecture, family.head, h.find("tie_word_embeddings"), checkpoint
    )
    notes += said
    _check_embedding(h, checkpoint, found)
    found.sort(key=lambda pair: pair[0])  # stable: tensors from one source stay in the order of the rules
    pooling, unpooled = pooling_kvs(checkpoint)
    notes += unpooled
    own = family.kvs(h)
    for key in ("rope.dimension_count", "rope.dimension_count_swa"):
        if key in own and int(own[key][0]) % 2:
            raise Unsupported(
                f"{checkpoint.source}: its config.json rotates {own[key][0]} of the {h.head_dim} values of a "
                "head; llama.cpp rotates them in pairs; try a gptq, awq, quanto or bnb recipe"
            )
    pairs = sum(own.get("rope.dimension_sections", ((), ""))[0])
    if pairs and 2 * pairs > h.head_dim:
        raise Unsupported(
            f"{checkpoint.source}: the mrope_section of its config.json has {pairs} pairs, a head of "
            f"{h.head_dim} values has {h.head_dim // 2}; fetch config and weights of the same model"
        )
    kvs = {
        key if key.startswith(OWN_KEYS) else f"{family.architecture}.{key}": value
        for key, value in {**own, **pooling}.items()
    }
    tensors = [mapped for _, mapped in found]
    return FamilyPlan(family.architecture, kvs, tensors, notes, frozenset(left_out))


def source_names(rule: Rule, suffix: str, layer: int, h: Hyperparameters) -> tuple[str, ...]:
    """HF names of what the rule's tensor with ``suffix`` is made of in one layer."""
    total = (rule.count(h) if rule.count else h.experts) if "{x}" in rule.source else 1
    return tuple(rule.source.replace("{i}", str(layer)).replace("{x}", str(x)) + suffix for x in range(total))


def target_name(rule: Rule, suffix: str, layer: int) -> str:
    # A tensor whose source name carries no suffix (fused experts as a bare parameter) is a weight.
    ending = (suffix or ".weight") if rule.ending is None else rule.ending
    return rule.target.replace("{i}", str(layer)) + ending


def _mapped(target: str, sources: tuple[str, ...], operation: Operation, checkpoint: Checkpoint) -> Mapped:
    shapes = [checkpoint.tensors[name].shape for name in sources]
    try:
        shape = operation.shape(shapes)
    except (BadInput, IndexError, ValueError) as error:
        raise BadInput(
            f"{checkpoint.source}: tensor {sources[0]} of shape "
            f"{list(shapes[0])} does not fit its config: {error}"
        ) from None
    return Mapped(
        target,
        shape,
        sources,
        operation.build,
        partial(_restore, operation, shapes),
        operation.pure,
        columns=operation.columns(),
        of_entry=operation.of_entry() if len(shape) == 3 else None,
    )


def _restore(operation: Operation, shapes: Sequence[tuple[int, ...]], array: np.ndarray) -> list[np.ndarray]:
    return operation.restore(array, shapes)


def _rotated(family: Family, h: Hyperparameters) -> int:
    if family.rotated is not None:
        return family.rotated(h)
    rope = read_rope(h)
    if rope.kind != "default" and rope.partial != 1:  # to a plain rotation the key means nothing
        raise Unsupported(
            f"{h.source}: partial_rotary_factor {rope.partial}; a {family.architecture} rotates whole heads"
        )
    return h.head_dim


def _constant(name: str, array: np.ndarray) -> Mapped:
    return Mapped(name, array.shape, (), lambda arrays: array, lambda restored: [], pure=False)


def _check_activation(family: Family, h: Hyperparameters) -> None:
    name = h.find("hidden_activation", "hidden_act", "activation_function", "activation")
    if name is not None and name not in family.activations:
        known = " or ".join(family.activations)
        raise Unsupported(
            f"{h.source}: activation {name!r}, but llama.cpp computes {known} in its {family.architecture}"
        )


def _check_embedding(h: Hyperparameters, checkpoint: Checkpoint, found: list[tuple[int, Mapped]]) -> None:
    width = h.find("hidden_size", "n_embd")
    for _, mapped in found:
        if mapped.name == "token_embd.weight" and width and mapped.shape[-1] != width:
            raise BadInput(
                f"{checkpoint.source}: {mapped.sources[0]} has rows of "
                f"{mapped.shape[-1]}, its config says hidden_size {width}"
            )
