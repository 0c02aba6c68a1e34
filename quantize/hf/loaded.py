"""What transformers makes of a checkpoint when it loads it, both ways: which of its linear layers and other
parameters are made of which tensors of the files, and those tensors again from the parameters."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.safetensors_header import TensorInfo
from quantize.dtypes import TORCH
from quantize.errors import Unsupported
from quantize.hf.conversions import STACKED, STACKED_JOINED, Part, parameter_parts
from quantize.hf.names import (
    IGNORED,
    Layers,
    empty_model,
    find_layers,
    linear_layers,
    renamed_again,
    renaming,
    router_layers,
)
from quantize.hf.watched import linear_uses
from quantize.hf.wrappers import lies_in, ties_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROUTER = "its layer also chooses experts, which the library's layer would not do"
_EXPERTS = "experts"  # in the name of a parameter that holds all of a layer


@dataclass(frozen=True)
class Loaded:
    """``parts``: of each parameter, and of each buffer that the files hold, what it is made of; a tied head
    is its embedding's. ``merged``: some are made of several tensors, or of a part of one. ``routers``:
    the checkpoint's tensors of linear layers that choose experts, which are not among ``layers.linear``.
    ``again``: ``renamed_again``, of merged ones."""

    layers: Layers
    parts: Mapping[str, Part]
    merged: bool
    routers: frozenset[str] = frozenset()
    again: frozenset[str] = frozenset()

    def sources(self, modules: set[str]) -> set[str]:
        """The checkpoint's tensors of which the weights of ``modules`` are made."""
        return {
            source
            for name in modules
            if (part := self.parts.get(f"{name}.weight")) is not None
            for source in part.sources
        }

    def tensor(self, module: str) -> str:
        """What a note calls the weight of ``module``: the checkpoint's tensor where that is one."""
        part = self.parts.get(f"{module}.weight")
        return part.sources[0] if part is not None and part.make is None else f"{module}.weight"

    def experts(self) -> set[str]:
        """The checkpoint's tensors that lie in a parameter of stacked experts: no linear layer holds them."""
        linear = {f"{name}.weight" for name in self.layers.linear}
        return {
            source
            for name, part in self.parts.items()
            if name not in linear and _EXPERTS in name.split(".") and not name.endswith("bias")
            for source in part.sources
        }

    def beside(self, quantized: frozenset[str] = frozenset()) -> frozenset[str]:
        """Parameters that lie beside the text model, and the checkpoint's tensors that they are made of;
        without those of ``quantized`` parameters."""
        kept = {name: p for name, p in self.parts.items() if lies_in(name, self.layers.beside)}
        kept = {name: part for name, part in kept.items() if name not in quantized}
        return frozenset(kept) | {source for part in kept.values() for source in part.sources}


@lru_cache(maxsize=1)
def loaded(checkpoint: Checkpoint) -> Loaded:
    """A cache of the last answer: a conversion asks several times about one checkpoint.

    Errors: Unsupported where transformers lacks the architecture, or has no place for a tensor of the files.
    """
    try:
        layers = find_layers(checkpoint)
    except Unsupported:
        if not checkpoint.usual_files:
            raise
        layers, parts, routers, again = _merged(checkpoint)
        return Loaded(layers, {**parts, **_buffers(checkpoint, parts)}, True, routers, again)
    parts = {name: Part((source,)) for name, source in layers.source.items()}
    known = {source for part in parts.values() for source in part.sources} | set(layers.buffers)
    known |= {layers.stored_head or ""}
    more = _buffers(checkpoint, parts) if checkpoint.tensors.keys() - known else {}
    return Loaded(layers, {**parts, **more}, merged=False)


def _merged(checkpoint: Checkpoint) -> tuple[Layers, dict[str, Part], frozenset[str], frozenset[str]]:
    model = empty_model(checkpoint, buffers=False)
    parts = parameter_parts(checkpoint, model)
    names = {id(module): name for name, module in model.named_modules()}
    tied = ties_head(model)
    head = names.get(id(model.get_output_embeddings()))
    embedding = names.get(id(model.get_input_embeddings()))
    stored_head = None
    if tied and head is not None:
        mine, theirs = parts.get(f"{head}.weight"), parts[f"{embedding}.weight"]
        if mine is not None and mine.sources != theirs.sources:
            stored_head = mine.sources[0]
        parts[f"{head}.weight"] = theirs
    linear, beside, linear_beside = linear_layers(model)
    special = [f"{name}.weight" for name in router_layers(model)]
    routers = frozenset(source for name in special if name in parts for source in parts[name].sources)
    source = {name: part.sources[0] for name, part in parts.items() if part.make is None}
    uses = linear_uses(checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code)
    read = {name for part in parts.values() for name in part.sources}
    buffers = tuple(name for name in checkpoint.tensors if name.endswith(IGNORED) and name not in read)
    layers = Layers(linear, head, tied, source, buffers, stored_head, uses, beside, linear_beside)
    return layers, parts, routers, renamed_again(model)


def _buffers(checkpoint: Checkpoint, parts: Mapping[str, Part]) -> dict[str, Part]:
    """Of the buffers that transformers reads from the files: biases by which experts are chosen, factors."""
    model = empty_model(checkpoint, buffers=False)
    taken = {source for part in parts.values() for source in part.sources}
    place, state, found = renaming(model), model.state_dict().keys(), {}
    for name in checkpoint.tensors:
        if name in taken or name.endswith(IGNORED):
            continue
        known = name if name in state else place(name)
        if known in state and known not in parts:
            found[known] = Part((name,))
    return found


def sources_again(
    parts: Mapping[str, Part], checkpoint: Checkpoint, values: Callable[[str], np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """(the checkpoint's name, array of its shape) of every tensor that ``parts`` are made of, given the
    ``values`` of each parameter: the inverse of ``Part.read``."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, part in parts.items():
        groups.setdefault(part.sources, []).append(name)
    for sources, names in groups.items():
        part = parts[names[0]]
        if part.make is None:
            yield sources[0], values(names[0])
            continue
        shapes = {source: checkpoint.tensors[source].shape for source in sources}
        if part.operations in (STACKED, STACKED_JOINED):
            yield from _unstacked(part, shapes, values(names[0]))
        else:
            yield from _traced([(parts[name], values(name)) for name in names], shapes)


def stored_sources(
    found: Loaded,
    checkpoint: Checkpoint,
    stored: Callable[[str], bool],
    values: Callable[[str], np.ndarray],
) -> Iterator[tuple[str, np.ndarray]]:
    """(the checkpoint's name, array of its shape) of every tensor of a folder that holds quantized parameters
    under transformers' names and the rest under the checkpoint's. ``stored``: whether it holds that name."""
    head = f"{found.layers.head}.weight" if found.layers.tied else ""
    parts, apart = {}, dict[str, None]()
    for name, part in found.parts.items():
        if name == head:
            continue
        # a name of the files whose tensor transformers changes is that of the files
        if stored(name) and (part.make is None or name not in part.sources):
            parts[name] = part
        else:
            apart |= dict.fromkeys(part.sources)
    yield from sources_again(parts, checkpoint, values)
    for source in apart:
        yield source, values(source)


def _unstacked(
    part: Part, shapes: Mapping[str, tuple[int, ...]], values: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Experts of one tensor each, by view: those of a pattern lie below those of the pattern before."""
    start = 0
    for pattern in sorted(set(part.patterns)):
        mine = [s for s, number in zip(part.sources, part.patterns, strict=True) if number == pattern]
        rows = shapes[mine[0]][0]
        for index, source in enumerate(mine):
            yield source, values[index, start : start + rows]
        start += rows


def _traced(
    made: list[tuple[Part, np.ndarray]], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Whatever moves values and changes none: the numbers of the values go the way that values go."""
    import torch

    sizes = [math.prod(shape) for shape in shapes.values()]
    ends = np.cumsum(sizes).tolist()
    flat = np.zeros(ends[-1], made[0][1].dtype)
    for part, values in made:
        numbers = torch.arange(ends[-1]).split(sizes)
        inputs = [each.reshape(shape) for each, shape in zip(numbers, shapes.values(), strict=True)]
        assert part.make is not None
        flat[part.make(inputs).numpy().reshape(-1)] = values.reshape(-1)
    for (source, shape), end in zip(shapes.items(), ends, strict=True):
        yield source, flat[end - math.prod(shape) : end].reshape(shape)


def as_loaded(checkpoint: Checkpoint, quantized: frozenset[str], source_names: bool) -> Checkpoint:
    """``checkpoint`` with the tensors that an artifact will hold: transformers' parameters under their own
    names, or, where ``source_names``, of those not in ``quantized`` what they are made of. For sizes only."""
    found = loaded(checkpoint)
    if not found.merged:
        return checkpoint
    tensors: dict[str, TensorInfo] = {}
    model = empty_model(checkpoint, buffers=False)
    shapes = {name: tuple(each.shape) for name, each in model.state_dict().items()}
    for name, part in found.parts.items():
        if found.layers.tied and name == f"{found.layers.head}.weight":
            continue
        if source_names and name not in quantized:
            tensors |= {source: checkpoint.tensors[source] for source in part.sources}
        else:
            tensors[name] = TensorInfo(name, shapes[name], checkpoint.tensors[part.sources[0]].dtype)
    return replace(checkpoint, tensors=tensors)


def singly_noted(checkpoint: Checkpoint, quantized: frozenset[str] = frozenset()) -> Checkpoint:
    """Without the tensors that ``experts_note`` and ``beside_notes`` speak of."""
    found = loaded(checkpoint)
    gone = found.experts() | found.beside(quantized)
    tensors = {name: info for name, info in checkpoint.tensors.items() if name not in gone}
    return replace(checkpoint, tensors=tensors) if gone else checkpoint


def keep_dtypes(model: "PreTrainedModel", checkpoint: Checkpoint, kept: frozenset[str]) -> None:
    """Give the parameters ``kept`` (``Loaded.beside``) of a loaded model the source's values and dtype."""
    import torch

    parts = loaded(checkpoint).parts
    for name, parameter in model.named_parameters():
        part = parts.get(name) if name in kept else None
        if part is None:
            continue
        wanted = getattr(torch, TORCH[checkpoint.tensors[part.sources[0]].dtype])
        if parameter.dtype == wanted:
            continue
        if part.make is None:
            parameter.data = checkpoint.read_torch(part.sources[0]).to(parameter.device)
        else:  # whatever moves values and changes none
            values = torch.from_numpy(np.ascontiguousarray(part.read(checkpoint.read_float32)))
            parameter.data = values.to(parameter.device, wanted)


def beside_notes(
    checkpoint: Checkpoint, quantized: frozenset[str] = frozenset(), how: str = ""
) -> list[Note]:
    """One for each module beside the text model that holds tensors of more than one axis; ``how`` to have
    them quantized too, where that can be."""
    found, notes = loaded(checkpoint), []
    for module in found.layers.beside:
        sources = {
            source
            for name, part in found.parts.items()
            if lies_in(name, (module,)) and name not in quantized
            for source in part.sources
        }
        infos = [checkpoint.tensors[source] for source in sorted(sources)]
        if not any(len(info.shape) > 1 for info in infos):
            continue
        share = sum(info.parameters for info in infos) / checkpoint.parameters
        kinds = ", ".join(sorted({info.dtype for info in infos}))
        why = "it is no part of the text model" + how
        if any(name.startswith(f"{module}.") for name in quantized):
            why = "what of it is no linear layer, or embeds"
        notes.append(
            Note(tensor=module, what=f"kept as {kinds}: {share:.1%} of the model's weights", why=why)
        )
    return notes


def experts_note(checkpoint: Checkpoint, library: str) -> Note | None:
    """Of experts that stay as they are, because transformers holds a layer's in one parameter."""
    experts = [checkpoint.tensors[name] for name in sorted(loaded(checkpoint).experts())]
    if not experts:
        return None
    share = sum(info.parameters for info in experts) / checkpoint.parameters
    return Note(
        tensor="experts",
        what=f"kept as {experts[0].dtype}: {share:.1%} of the model's weights",
        why=f"transformers holds the experts of a layer in one parameter, and {library} quantizes linear "
        "layers only; GPTQ, AWQ and GGUF recipes quantize them",
    )


def experts_kept(checkpoint: Checkpoint, library: str) -> str:
    """The same, for a plan; empty where all is quantized."""
    note = experts_note(checkpoint, library)
    return f"experts are {note.what} ({note.why})" if note else ""
