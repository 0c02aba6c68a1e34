"""Tensors that predict further tokens (multi-token prediction), which transformers' models do not read: the
next token's logits do not depend on them.

Checkpoints hold them as layers behind the last one that the config counts (DeepSeek, GLM, Hunyuan), or under
a name of their own (Qwen, ERNIE, EXAONE, MiMo, Nemotron).
"""

import re
from collections.abc import Iterable

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.config import LAYER_COUNTS

_NAMED = re.compile(r"^(?:[a-z_]+\.)*?mtp(?:_\w+)?\.")
_LAYER = re.compile(r"^(?:model\.|language_model\.)*layers\.(\d{1,6})\.")
#: what only such a layer has
_OWN = (".eh_proj.", ".enorm.", ".hnorm.")


def ahead(checkpoint: Checkpoint) -> frozenset[str]:
    """Names of the tensors, by names and config alone: a layer behind the last one counts where the config
    says that there are such, or it has what only they have."""
    named = {name for name in checkpoint.tensors if _NAMED.match(name)}
    text = checkpoint.config.get("text_config")
    config = {**checkpoint.config, **(text if isinstance(text, dict) else {})}
    layers = next((config[name] for name in LAYER_COUNTS if isinstance(config.get(name), int)), None)
    if layers is None:
        return frozenset(named)
    behind: dict[int, list[str]] = {}
    for name in checkpoint.tensors:
        found = _LAYER.match(name)
        if found and int(found[1]) >= layers:
            behind.setdefault(int(found[1]), []).append(name)
    told = config.get("num_nextn_predict_layers") or 0
    for index, names in behind.items():
        if index < layers + told or any(own in name for name in names for own in _OWN):
            named |= set(names)
    return frozenset(named)


def ahead_notes(names: Iterable[str], architecture: str) -> list[Note]:
    """One for each layer or module of them."""
    groups: dict[str, int] = {}
    for name in names:
        found = _LAYER.match(name) or _NAMED.match(name)
        start = found[0] if found else name
        groups[start] = groups.get(start, 0) + 1
    why = f"they predict further tokens, which transformers' {architecture} does not do; the next token does "
    why += "not depend on them"
    return [
        Note(tensor=f"{start}*", what=f"{count} tensors left out", why=why)
        for start, count in sorted(groups.items())
    ]
