"""A family's rules applied to a checkpoint's headers: what its GGUF holds."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import BUFFERS, Checkpoint
from quantize.errors import BadInput, Unsupported
from quantize.gguf.families.base import FamilyPlan, Mapped
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ARRAY, OWN_KEYS, U32, Family, OneOf, Rule
from quantize.gguf.families.heads import settle_head
from quantize.gguf.families.multimodal import is_other, others_note, text_config, text_name
from quantize.gguf.families.operations import COPY, Operation
from quantize.gguf.families.pooling import pooling_kvs
from quantize.gguf.families.rope import read_rope, rope_tensors


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
        if name.startswith("mtp.") and f"model.{name}" in checkpoint.tensors:
            return f"model.{name}"
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

    def needed(rules: tuple[Rule, ...], layer: int) -> list[str]:
        held = [rule for rule in rules if not rule.when or rule.when(h, layer)]
        return [name for rule in held for suffix in rule.suffixes for name in names(rule, suffix, layer)]

    def chosen(entry: Rule | OneOf, layer: int) -> tuple[Rule, ...]:
        if isinstance(entry, Rule):
            return (entry,)
        for rules in entry.options:
            if (sources := needed(rules, layer)) and all(name in checkpoint.tensors for name in sources):
                return rules
        return entry.options[0]

    for entry in family.ends:
        for rule in chosen(entry, 0):
            apply(rule, 0)
    for layer in range(h.layers):
        for entry in family.layer:
            for rule in chosen(entry, layer):
                apply(rule, layer)
    later, trunk = 0, len(found)
    if family.ahead is not None:

        def whole(layer: int, rules: tuple[Rule | OneOf, ...]) -> bool:
            return all(
                name in checkpoint.tensors for rule in rules for name in needed(chosen(rule, layer), layer)
            )

        while later < family.ahead.most and whole(h.layers + later, family.ahead.layer):
            for entry in family.ahead.layer:
                for rule in chosen(entry, h.layers + later):
                    apply(rule, h.layers + later)
            later += 1
    ahead = frozenset(mapped.name for _, mapped in found[trunk:])
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
    if family.ahead is not None and later:
        own["block_count"] = (h.layers + later, U32)
        for key, value in family.ahead.kvs(h).items():
            own[key] = ([*own[key][0], *[value] * later], ARRAY)
        own["nextn_predict_layers"] = (later, U32)
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
    return FamilyPlan(family.architecture, kvs, tensors, notes, frozenset(left_out), ahead)


def source_names(rule: Rule, suffix: str, layer: int, h: Hyperparameters) -> tuple[str, ...]:
    """HF names of what the rule's tensor with ``suffix`` is made of in one layer."""
    total = (rule.count(h) if rule.count else h.experts) if "{x}" in rule.source else 1
    name = rule.source.replace("{i}", str(layer))
    if "{m}" in name:
        name = name.replace("{m}", str(layer - h.layers))
    return tuple(name.replace("{x}", str(x)) + suffix for x in range(total))


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
        restored=shapes,
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
