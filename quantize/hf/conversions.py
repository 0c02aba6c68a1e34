"""How transformers makes a model's parameters of a checkpoint's tensors: renamed, stacked, joined, as its own
loader does it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.hf.ahead import ahead
from quantize.hf.names import IGNORED, find_layers, renaming
from quantize.hf.wrappers import ties_head

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Read = Callable[[str], np.ndarray]
#: operations of experts that are a tensor each in the files: one below the other, and two such side by side
STACKED = (("MergeModulelist", 0),)
STACKED_JOINED = (("MergeModulelist", 0), ("Concatenate", 1))


@dataclass(frozen=True)
class Part:
    """One parameter: the checkpoint's tensors that it is made of, and how; None: it is that one tensor,
    unchanged.

    ``operations``: transformers' names of what is done, with the axis; ``patterns``: of each source, the
    number of the converter's pattern that it has; ``start``: rows of the source before this parameter, where
    several parameters are made of it.
    """

    sources: tuple[str, ...]
    make: "Callable[[list[torch.Tensor]], torch.Tensor] | None" = None
    operations: tuple[tuple[str, int], ...] = ()
    patterns: tuple[int, ...] = ()
    start: int = 0

    def read(self, read: Read) -> np.ndarray:
        if self.make is None:
            return read(self.sources[0])
        import torch

        made: np.ndarray = self.make(
            [torch.from_numpy(np.array(read(name), np.float32)) for name in self.sources]
        ).numpy()
        return made


def parameter_parts(checkpoint: Checkpoint, model: "PreTrainedModel") -> dict[str, Part]:
    """Of each parameter of ``model``, the checkpoint's architecture without weights.

    Errors: Unsupported where a tensor has no place in it, or one of another shape.
    """
    try:
        return {name: Part((source,)) for name, source in find_layers(checkpoint).source.items()}
    except Unsupported as error:
        parts = _converted(checkpoint, model)
        if parts is None:
            raise error
        return parts


def _converted(checkpoint: Checkpoint, model: "PreTrainedModel") -> dict[str, Part] | None:
    """None where the loader's mapping leaves a tensor without a place."""
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

    transforms = get_model_conversion_mapping(model)
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    renamings: list[Any] = [each for each in transforms if not isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    state = dict(model.state_dict())
    parameters = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    parts: dict[str, Part] = {}
    later = ahead(checkpoint)
    groups: dict[str, tuple[WeightConverter, list[tuple[str, str]]]] = {}
    for name in sorted(checkpoint.tensors, key=dot_natural_key):
        if name in later or name.endswith(IGNORED):
            continue
        known, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if pattern is not None:
            groups.setdefault(known, (by_pattern[pattern], []))[1].append((pattern, name))
        elif known in parameters:
            parts[known] = Part((name,))
        elif known not in state:
            return None
    for known, (converter, members) in groups.items():
        sources = tuple(name for _, name in members)
        convert = partial(_convert, converter, known, [pattern for pattern, _ in members], model)
        numbers = tuple(converter.source_patterns.index(pattern) for pattern, _ in members)
        shapes = [torch.empty(checkpoint.tensors[name].shape, device="meta") for name in sources]
        start = 0
        for made, value in convert(shapes).items():
            operations = tuple(_operation(each, shapes[0], value) for each in converter.operations)
            make = partial(lambda made, convert, tensors: convert(tensors)[made], made, convert)
            parts[made] = Part(sources, make, operations, numbers, start)
            state[made] = value
            start += value.shape[0]
    _tie(model, parts)
    for name, part in parts.items():
        shape = tuple(state[name].shape) if part.make else checkpoint.tensors[part.sources[0]].shape
        if parameters.get(name) != shape:
            return None
    return parts


def _operation(operation: Any, source: "torch.Tensor", made: "torch.Tensor") -> tuple[str, int]:
    """(name, axis); "Same" for a transposition that finds the axes in order."""
    name = type(operation).__name__
    if name != "Transpose":
        return name, getattr(operation, "dim", -1)
    turned = not operation.check_dims or source.shape != made.shape
    return ("Transpose" if turned else "Same"), min(operation.dim0, operation.dim1)


def _convert(
    converter: "WeightConverter",  # type: ignore[name-defined]  # noqa: F821
    name: str,
    patterns: list[str],
    model: "PreTrainedModel",
    tensors: "list[torch.Tensor]",
) -> "dict[str, torch.Tensor]":
    own = copy.deepcopy(converter)
    for pattern, tensor in zip(patterns, tensors, strict=True):
        own.add_tensor(name, name, pattern, tensor)
    made: dict[str, torch.Tensor] = own.convert(name, model=model, config=model.config)
    return {key: value[0] if isinstance(value, list) else value for key, value in made.items()}


def read_buffers(checkpoint: Checkpoint, model: "PreTrainedModel", read: Read) -> None:
    """Of ``model``, whose buffers are real: those that the files hold (biases by which experts are chosen,
    factors of layers) get what ``read`` gives by the checkpoint's names."""
    import torch

    state = model.state_dict()
    buffers = {name: each for name, each in model.named_buffers() if name in state}
    if not buffers:
        return
    place = renaming(model)
    for name in checkpoint.tensors:
        buffer = buffers.get(name)
        if buffer is None:
            buffer = buffers.get(place(name) or "")
        if buffer is not None and tuple(buffer.shape) == checkpoint.tensors[name].shape:
            with torch.no_grad():
                buffer.copy_(torch.from_numpy(np.array(read(name))))


def _tie(model: "PreTrainedModel", parts: dict[str, Part]) -> None:
    """A tied head is the embedding."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or not ties_head(model):
        return
    names = {id(module): name for name, module in model.named_modules()}
    mine, theirs = f"{names[id(head)]}.weight", f"{names[id(embedding)]}.weight"
    if mine not in parts and theirs in parts:
        parts[mine] = parts[theirs]
