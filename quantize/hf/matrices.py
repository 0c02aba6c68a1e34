"""Which matrices of a checkpoint GPTQ, AWQ and rounding to nearest quantize: those of its decoder layers,
found in whatever transformers builds of it, from headers only.

transformers and the files may hold a matrix differently: experts one by one in the files and in one tensor
of the model, or the other way round; transposed (``Conv1D``); several below one another. A ``Linear`` says
where it lies in both.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.dtypes import FLOATS
from quantize.errors import Unsupported
from quantize.hf.conversions import STACKED, STACKED_JOINED, Part, parameter_parts
from quantize.hf.names import EMBEDDING, HEAD, empty_model
from quantize.hf.plain_decoders import parameters
from quantize.hf.watched import linear_uses, without_values
from quantize.hf.wrappers import beside_text, lies_in, text_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

#: a layer with fewer inputs or outputs holds next to nothing, and kernels do not take it
SMALLEST = 32
_TOO_SMALL = f"with fewer than {SMALLEST} inputs or outputs there is nothing to gain"
_TOLD_LAYER = re.compile(r"^(.*\blayers\.\d+)\.")
#: modules of stacked experts that do not say how their tensors lie -> whether inputs come before outputs
_UNTOLD_EXPERTS = {"Llama4TextExperts": True, "LongcatFlashExperts": False, "JetMoeParallelExperts": False}


@dataclass(frozen=True)
class Place:
    """Where a matrix (outputs, inputs) lies in a tensor: ``index`` of a three-dimensional one, there ``rows``
    (start, stop, step) of its outputs (None: all), ``transposed`` where inputs come first."""

    index: int | None = None
    rows: tuple[int, int, int] | None = None
    transposed: bool = False

    def view(self, tensor: Any) -> Any:
        """(outputs, inputs), a view of ``tensor`` (numpy or torch)."""
        matrix = tensor if self.index is None else tensor[self.index]
        matrix = matrix.T if self.transposed else matrix
        return matrix if self.rows is None else matrix[slice(*self.rows)]


@dataclass(frozen=True)
class Linear:
    """A matrix that is quantized. ``name``: its base name in the artifact; ``source``: the checkpoint's
    tensor that holds it; ``parameter``: transformers' parameter that does; ``module``: the class of
    transformers' module that it is the weight of, empty where that holds several matrices."""

    name: str
    outputs: int
    inputs: int
    source: str
    parameter: str
    in_source: Place = Place()
    in_parameter: Place = Place()
    module: str = "Linear"

    @property
    def matrix(self) -> int:
        """Number of the matrix within the parameter: of the expert, else 0."""
        return self.in_parameter.index or 0

    @property
    def layer(self) -> str:
        """The module of transformers' whose weight it is, or is part of."""
        return self.parameter.removesuffix(".weight")

    @property
    def in_entry(self) -> "Linear":
        """As it lies in its own entry of the source's first axis, of an expert's matrix."""
        return replace(self, in_source=replace(self.in_source, index=None))

    def take(self, array: np.ndarray) -> np.ndarray:
        """The source's tensor -> (outputs, inputs) float32, a copy."""
        return np.array(self.in_source.view(array), np.float32, order="C")

    def give(self, array: np.ndarray, values: np.ndarray) -> None:
        """Write ``values`` (outputs, inputs) into ``array``, of the source's shape: inverse of ``take``."""
        self.in_source.view(array)[...] = values

    def held(self, parameter: "torch.Tensor") -> "torch.Tensor":
        """(outputs, inputs): a view of transformers' parameter."""
        view: torch.Tensor = self.in_parameter.view(parameter)
        return view

    def place(self, parameter: "torch.Tensor", values: "torch.Tensor") -> None:
        """Write ``values`` (outputs, inputs) into transformers' parameter."""
        import torch

        with torch.no_grad():
            self.held(parameter).copy_(values)


@dataclass(frozen=True)
class DecoderLinears:
    """``layers``: by decoder layer, in the order of modules; ``layer_names``: transformers' modules;
    ``head``: the output layer, where it is a tensor of its own; ``tied_head``: where its weights are the
    embedding's; ``kept``: tensors of the source in decoder layers that stay as they are, and why;
    ``others``: modules of linear layers that are none of these, but for the head; ``initialised``: whether
    transformers' code initialises weights of layers from outside, which fails once loaders have replaced
    those. ``beside``: of a model that also sees or hears, the modules that are no part of its text model,
    outermost only, and the source's tensors in each."""

    layers: tuple[tuple[Linear, ...], ...]
    layer_names: tuple[str, ...]
    head: Linear | None
    kept: tuple[tuple[str, str], ...] = ()
    others: tuple[str, ...] = ()
    initialised: bool = False
    beside: tuple[tuple[str, tuple[str, ...]], ...] = ()
    tied_head: Linear | None = None

    @property
    def output(self) -> Linear | None:
        return self.head or self.tied_head

    def __iter__(self) -> Iterator[Linear]:
        """Those of the layers; not the head."""
        return (linear for layer in self.layers for linear in layer)


@lru_cache(maxsize=2)
def decoder_linears(checkpoint: Checkpoint) -> DecoderLinears:
    """Every linear layer, ``Conv1D`` and stacked experts' matrix of the decoder layers; not what chooses
    experts.

    Errors: Unsupported where transformers lacks the architecture, or the files are not its tensors.
    """
    told = parameters(checkpoint.config)
    if told is not None and all(told[0].get(name) == info.shape for name, info in checkpoint.tensors.items()):
        return _told(checkpoint, told[1], tied=told[2])
    model = empty_model(checkpoint, buffers=False)
    parts = parameter_parts(checkpoint, model)
    layers, names = _layers(model, checkpoint)
    direct = linear_uses(checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code).direct
    kept: dict[str, str] = {}
    found: list[tuple[Linear, ...]] = []
    taken: set[str] = set()  # zamba's layers share their transformer
    experts = _expert_counts(model)
    for layer_name, layer in zip(names, layers, strict=True):
        inside: list[Linear] = []
        for name, module in layer.named_modules(prefix=layer_name):
            for own, parameter in module.named_parameters(recurse=False):
                full = f"{name}.{own}"
                part = parts.get(full)
                if part is None or parameter.ndim < 2 or full in taken:
                    continue
                taken.add(full)
                why = _why_kept(name, module, parameter, experts, direct)
                linears = [] if why else list(_linears(full, module, own, parameter, part, checkpoint))
                if linears:
                    inside += linears
                else:
                    kept |= dict.fromkeys(part.sources, why or "this program does not know how it is stored")
        found.append(tuple(inside))
    quantized = {linear.parameter for inside in found for linear in inside}
    output = model.get_output_embeddings()
    beside = beside_text(model)
    others = tuple(
        name
        for name, module in model.named_modules()
        if _is_linear(module)
        and module is not output
        and f"{name}.weight" not in quantized
        and not lies_in(name, beside)
    )
    head, tied_head = _head(model, parts, checkpoint)
    alone = {linear.layer for inside in found for linear in inside if linear.module}
    initialised = _initialised(model, alone)
    towers = tuple((each, _sources_in(each, parts)) for each in beside)
    return DecoderLinears(
        tuple(found), names, head, tuple(kept.items()), others, initialised, towers, tied_head
    )


def _sources_in(module: str, parts: Mapping[str, Part]) -> tuple[str, ...]:
    found = (part.sources for name, part in parts.items() if lies_in(name, (module,)))
    return tuple(dict.fromkeys(source for sources in found for source in sources))


def _told(checkpoint: Checkpoint, linear: dict[str, tuple[int, int]], tied: bool) -> DecoderLinears:
    """Of the decoders that need not be built: their tensors are transformers' parameters."""
    by_layer: dict[str, list[Linear]] = {}
    kept: dict[str, str] = {}
    for name, (outputs, inputs) in linear.items():
        weight = f"{name}.weight"
        layer = _TOLD_LAYER.match(name)
        if not layer or weight not in checkpoint.tensors:
            continue
        inside = by_layer.setdefault(layer[1], [])
        if min(outputs, inputs) < SMALLEST:
            kept[weight] = _TOO_SMALL
        else:
            inside.append(Linear(name, outputs, inputs, weight, weight))
    head = tied_head = None
    if tied and EMBEDDING in checkpoint.tensors:
        tied_head = Linear(HEAD, *linear[HEAD], EMBEDDING, f"{HEAD}.weight")
    if not tied and f"{HEAD}.weight" in checkpoint.tensors:
        head = Linear(HEAD, *linear[HEAD], f"{HEAD}.weight", f"{HEAD}.weight")
    others = tuple(name.removesuffix(".weight") for name in kept)
    layers = tuple(map(tuple, by_layer.values()))
    return DecoderLinears(layers, tuple(by_layer), head, tuple(kept.items()), others, tied_head=tied_head)


def _layers(
    model: "PreTrainedModel", checkpoint: Checkpoint
) -> "tuple[list[torch.nn.Module], tuple[str, ...]]":
    """The decoder's layers: of the lists of modules of the text model that lie in no other, the one that
    holds most."""
    import torch

    text = text_model(model)
    lists = {
        name: each
        for name, each in model.named_modules()
        if isinstance(each, torch.nn.ModuleList) and (not text or lies_in(name, (text,)))
    }
    outer = {
        name: each for name, each in lists.items() if not any(name.startswith(f"{other}.") for other in lists)
    }
    if not outer:
        raise Unsupported(f"{checkpoint.source}: {type(model).__name__} has no decoder layers to quantize")
    most = max(outer, key=lambda name: sum(p.numel() for p in outer[name].parameters()))
    layers = list(outer[most])
    return layers, tuple(f"{most}.{index}" for index in range(len(layers)))


def _initialised(model: "PreTrainedModel", layers: set[str]) -> bool:
    """Whether initialising the model reads ``weight`` of one of ``layers``; takes those out of the model."""
    import torch

    for name in layers:
        old: Any = model.get_submodule(name)
        new: Any = torch.nn.Module()
        new.bias = getattr(old, "bias", None)
        new.in_features, new.out_features = getattr(old, "in_features", 0), getattr(old, "out_features", 0)
        model.set_submodule(name, new)

    def initialise() -> None:
        for module in model.modules():
            model._init_weights(module)  # type: ignore[operator]

    return isinstance(without_values(initialise), AttributeError)


def _expert_counts(model: "PreTrainedModel") -> set[int]:
    config: Any = model.config.get_text_config()
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    counts = [getattr(config, name, None) for name in names]
    return {count for count in counts if isinstance(count, int) and count > 1}


def _why_kept(
    name: str, module: "torch.nn.Module", parameter: "torch.Tensor", experts: set[int], direct: frozenset[str]
) -> str | None:
    """Why a matrix of a decoder layer stays as it is; None where it is quantized."""
    kind = type(module).__name__
    last, rows = name.split(".")[-2:], parameter.shape[0]
    chooses = "router" in kind.lower() or "router" in last or ("gate" in last and rows in experts)
    if chooses or last[-1] == "shared_expert_gate":
        return "it chooses experts: rounding it would change which ones run"
    if name in direct:
        return "the model's code uses its weight itself, so that loaders cannot replace the layer"
    if not _is_linear(module) and not _are_experts(module, parameter):
        return "it is no linear layer"
    if min(parameter.shape[-2:]) < SMALLEST:
        return _TOO_SMALL
    return None


def _is_linear(module: "torch.nn.Module") -> bool:
    import torch

    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def _are_experts(module: "torch.nn.Module", parameter: "torch.Tensor") -> bool:
    """Several matrices in one parameter, one an expert, of a class that says how they lie."""
    told = hasattr(module, "is_transposed") or type(module).__name__ in _UNTOLD_EXPERTS
    return parameter.ndim == 3 and told


def _linears(
    full: str,
    module: "torch.nn.Module",
    own: str,
    parameter: "torch.Tensor",
    part: Part,
    checkpoint: Checkpoint,
) -> Iterator[Linear]:
    """The matrices of one parameter; none where its conversion is not one of those known here."""
    if any(checkpoint.tensors[source].dtype not in FLOATS for source in part.sources):
        return
    if parameter.ndim == 2:
        kind = type(module).__name__
        outputs, inputs = parameter.shape[::-1] if kind == "Conv1D" else parameter.shape
        there = Place(transposed=kind == "Conv1D")
        base = Linear(
            full.removesuffix(".weight"), outputs, inputs, "", full, in_parameter=there, module=kind
        )
        yield from _dense(base, part, checkpoint)
        return
    transposed = bool(getattr(module, "is_transposed", _UNTOLD_EXPERTS.get(type(module).__name__)))
    outputs, inputs = parameter.shape[:0:-1] if transposed else parameter.shape[1:]
    halves = _halves(own, outputs, bool(getattr(module, "is_concatenated", True)))
    for index in range(parameter.shape[0]):
        for half, (word, rows) in enumerate(halves):
            count = outputs if rows is None else len(range(*rows))
            there = Place(index, rows, transposed)
            base = Linear(word, count, inputs, "", full, in_parameter=there, module="")
            yield from _expert(base, half, len(halves), part)


def _halves(
    own: str, outputs: int, concatenated: bool
) -> tuple[tuple[str, tuple[int, int, int] | None], ...]:
    """Of the outputs of an expert's parameter: (name, rows) of each matrix."""
    if own != "gate_up_proj":
        return (("" if own == "weight" else own, None),)
    half = outputs // 2
    if concatenated:
        return ("gate_proj", (0, half, 1)), ("up_proj", (half, outputs, 1))
    return ("gate_proj", (0, outputs, 2)), ("up_proj", (1, outputs, 2))


def _dense(base: Linear, part: Part, checkpoint: Checkpoint) -> Iterator[Linear]:
    """A two-dimensional parameter of one tensor, of rows of one, or of several below one another."""
    names = [name for name, _ in part.operations]
    if part.make is None:
        source = part.sources[0]
        place = Place(transposed=base.in_parameter.transposed)
        yield replace(base, name=source.removesuffix(".weight"), source=source, in_source=place)
    elif base.in_parameter.transposed or any(axis for _, axis in part.operations):
        return
    elif names in (["Chunk"], ["Split"]):
        rows = (part.start, part.start + base.outputs, 1)
        yield replace(base, source=part.sources[0], in_source=Place(rows=rows))
    elif names == ["Concatenate"]:
        start = 0
        for _, source in sorted(zip(part.patterns, part.sources, strict=True), key=lambda each: each[0]):
            outputs = checkpoint.tensors[source].shape[0]
            place = Place(rows=(start, start + outputs, 1))
            name = source.removesuffix(".weight")
            yield replace(base, name=name, outputs=outputs, source=source, in_parameter=place, module="")
            start += outputs


def _expert(base: Linear, half: int, halves: int, part: Part) -> Iterator[Linear]:
    """One matrix of an expert: in the files one by one, or in one tensor as in transformers."""
    there = base.in_parameter
    index = there.index or 0
    if part.make is None or part.operations in ((("Transpose", 1),), (("Same", 1),)):
        source, turned = part.sources[0], ("Transpose", 1) in part.operations
        name = f"{source.rpartition('.')[0]}.{index}.{base.name}".removesuffix(".")
        place = Place(index, there.rows, there.transposed != turned)
        yield replace(base, name=name, source=source, in_source=place)
    elif there.transposed or (there.rows and there.rows[2] != 1):
        return
    elif part.operations in (STACKED, STACKED_JOINED):
        patterns = sorted(set(part.patterns))
        if len(patterns) not in (1, halves):
            return
        mine = patterns[half] if len(patterns) == halves else patterns[0]
        sources = [s for s, number in zip(part.sources, part.patterns, strict=True) if number == mine]
        source, rows = sources[index], None if len(patterns) == halves else there.rows
        name = source.removesuffix(".weight") + (f".{base.name}" if rows else "")
        yield replace(base, name=name, source=source, in_source=Place(rows=rows))
    elif part.operations == (("Concatenate", 1),) and sorted(part.patterns) == list(range(halves)):
        source = part.sources[part.patterns.index(half)]
        yield replace(
            base, name=f"{source.removesuffix('.weight')}.{index}", source=source, in_source=Place(index)
        )


def _head(
    model: "PreTrainedModel", parts: dict[str, Part], checkpoint: Checkpoint
) -> tuple[Linear | None, Linear | None]:
    """The output layer, where it is a tensor of its own; where it is the embedding's."""
    output = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is output), None)
    part = parts.get(f"{name}.weight")
    if name is None or part is None or part.make is not None:
        return None, None
    embedding = next(n for n, module in model.named_modules() if module is model.get_input_embeddings())
    outputs, inputs = checkpoint.tensors[part.sources[0]].shape
    if part.sources == parts[f"{embedding}.weight"].sources:
        return None, Linear(name, outputs, inputs, part.sources[0], f"{name}.weight")
    own = part.sources[0].removesuffix(".weight")
    return Linear(own, outputs, inputs, part.sources[0], f"{name}.weight"), None
