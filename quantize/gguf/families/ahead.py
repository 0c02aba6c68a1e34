"""Layers behind the last one, which predict further tokens (multi-token prediction): what llama.cpp's loaders
ask of one. It keeps them for drafting; logits do not depend on them."""

from collections.abc import Callable
from dataclasses import replace

from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import OneOf, Rule
from quantize.gguf.families.operations import Operation

LAYER = "model.layers.{i}."
When = Callable[[Hyperparameters, int], bool]


def _maybe(target: str, source: str) -> Rule:
    return Rule(target, source, suffixes=(), optional=(".weight",))


#: how such a layer joins a state and a token, and, where it has its own, its embedding, last norm and head
BEHIND = (
    Rule("blk.{i}.nextn.eh_proj", LAYER + "eh_proj"),
    Rule("blk.{i}.nextn.enorm", LAYER + "enorm"),
    Rule("blk.{i}.nextn.hnorm", LAYER + "hnorm"),
    _maybe("blk.{i}.nextn.embed_tokens", LAYER + "embed_tokens"),
    _maybe("blk.{i}.nextn.shared_head_head", LAYER + "shared_head.head"),
)
SHARED_NORM = _maybe("blk.{i}.nextn.shared_head_norm", LAYER + "shared_head.norm")
FINAL_NORM = _maybe("blk.{i}.nextn.shared_head_norm", LAYER + "final_layernorm")
#: published either way
LAST_NORM = OneOf(((FINAL_NORM,), (replace(SHARED_NORM, suffixes=(".weight",), optional=()),)))


def module(op: Callable[[Hyperparameters], Operation] | None = None) -> tuple[Rule, ...]:
    """The same in a checkpoint that has them once, in a module ``mtp``; ``op``: of the norms."""
    return (
        Rule("blk.{i}.nextn.eh_proj", "mtp.fc"),
        Rule("blk.{i}.nextn.enorm", "mtp.pre_fc_norm_embedding", op),
        Rule("blk.{i}.nextn.hnorm", "mtp.pre_fc_norm_hidden", op),
        replace(_maybe("blk.{i}.nextn.shared_head_norm", "mtp.norm"), op=op),
    )


def later(
    rules: tuple[Rule | OneOf, ...], prefix: str = LAYER, *, holds: tuple[When, ...] = ()
) -> tuple[Rule | OneOf, ...]:
    """Of a layer's ``rules`` those without a condition, or with one that ``holds`` in a layer behind the
    last, from tensors under ``prefix``; ``{m}`` in it counts these layers."""

    def moved(rule: Rule) -> Rule:
        return replace(rule, source=rule.source.replace(LAYER, prefix), when=None)

    found: list[Rule | OneOf] = []
    for rule in rules:
        if isinstance(rule, Rule):
            if rule.when is None or rule.when in holds:
                found.append(moved(rule))
        elif rule.options[0][0].when in (None, *holds):
            found.append(OneOf(tuple(tuple(moved(each) for each in option) for option in rule.options)))
    return tuple(found)
