"""An importance matrix of one's own: what llama-imatrix collects, from the transformers model instead.

For every matrix of every block, the sum over all tokens of the square of what enters each of its columns; of
experts, over the tokens that the router sent to each. Weights are read module by module as the forward pass
comes to them, so memory is bounded by the largest module and the activations of ``PASS_TOKENS`` tokens,
whatever the model's size.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import StepFailed, Unsupported
from quantize.gguf.families.base import Mapped
from quantize.gguf.families.plan import plan
from quantize.gguf.importance.file import Entry, ImportanceMatrix
from quantize.gguf.mixture import may_be_quantized
from quantize.gguf.tokenizer.special import added_around

if TYPE_CHECKING:
    import torch

PASS_TOKENS = 4096
_EXPERTS = re.compile(r"layers\.(\d+)\.\w+\.experts\.(gate_up|down)_proj$")
_ROUTER = re.compile(r"layers\.(\d+)\.\w+\.gate\.weight$")


@dataclass(frozen=True)
class Computed:
    """``missing``: matrices of blocks that no product was seen of, and that llama-quantize will have to do
    without."""

    matrix: ImportanceMatrix
    missing: tuple[str, ...]


def compute_imatrix(
    checkpoint: Checkpoint,
    ids: np.ndarray,
    *,
    dataset: str,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda windows: None,
) -> Computed:
    """Over ``ids`` (windows, tokens). ``dataset``: the name of the text, for the file.

    ``progress`` is told the number of windows done after each pass. Errors: Unsupported where GGUF or
    transformers lacks the architecture; StepFailed where activations are not finite.
    """
    import torch

    from quantize.calibration.layers import stream_weights
    from quantize.hf.names import empty_model

    tensors = {mapped.name: mapped for mapped in plan(checkpoint).tensors}
    model = empty_model(checkpoint)
    if getattr(model, "_can_set_experts_implementation", lambda: False)():
        model.set_experts_implementation("eager")  # one product per expert, in which the expert shows
    body = model.base_model  # without the head, which llama-imatrix leaves out too
    weights = {
        name: _weight(checkpoint, tensors, name, model.base_model_prefix)
        for name, _ in body.named_parameters()
    }
    stream_weights(body, {name: name for name in weights}, lambda name: weights[name].read(), device)
    sums = _Sums({name: weight.targets for name, weight in weights.items()})
    rows = max(1, PASS_TOKENS // ids.shape[1])
    with torch.no_grad(), sums.collecting(body):
        for first in range(0, len(ids), rows):
            part = torch.from_numpy(ids[first : first + rows]).to(device)
            body(input_ids=part, use_cache=False)
            progress(len(part))
    blocks = {name: m for name, m in tensors.items() if name.startswith("blk.") and len(m.shape) > 1}
    entries = sums.entries({name: m.shape[0] if len(m.shape) > 2 else 1 for name, m in blocks.items()})
    missing = tuple(
        name for name, m in blocks.items() if name not in entries and may_be_quantized(name, m.shape)
    )
    return Computed(ImportanceMatrix(entries, (dataset,), *ids.shape), missing)


def with_first_token(checkpoint: Checkpoint, ids: np.ndarray) -> np.ndarray:
    """``ids`` (windows, tokens), each window beginning with the token that the tokenizer puts before a text,
    if it puts one."""
    before, _ = added_around(SourceTokenizer.open(checkpoint.folder))
    return (
        np.concatenate([np.full((len(ids), 1), before[0]), ids[:, 1:]], axis=1) if len(before) == 1 else ids
    )


@dataclass(frozen=True)
class _Weight:
    """A parameter of the model: ``read`` gives it as float32; what it is multiplied with belongs to the GGUF
    ``targets``."""

    read: Callable[[], np.ndarray]
    targets: tuple[str, ...]


def _weight(checkpoint: Checkpoint, tensors: dict[str, Mapped], name: str, prefix: str) -> _Weight:
    """Of the base model. transformers fuses experts and renames routers when it loads them: here the families
    do that."""
    stored = next((n for n in (name, f"{prefix}.{name}") if n in checkpoint.tensors), None)
    if stored is not None:
        source = stored
        # A weight of three dimensions that is not of experts (latent attention's) meets other vectors in
        # llama.cpp's graph.
        targets = [
            m.name
            for m in tensors.values()
            if source in m.sources and (len(m.shape) == 2 or "_exps." in m.name)
        ]
        return _Weight(lambda: checkpoint.read_float32(source), tuple(targets))
    if match := _EXPERTS.search(name):
        parts = ("gate", "up") if match[2] == "gate_up" else ("down",)
    elif match := _ROUTER.search(name):
        parts = ("gate_inp",)
    ending = "_exps" if match and match[0].endswith("_proj") else ""
    targets = [f"blk.{match[1]}.ffn_{part}{ending}.weight" for part in parts] if match else []
    if not targets or any(target not in tensors for target in targets):
        raise Unsupported(f"{checkpoint.source}: has no tensor for {name}, which transformers' model has")

    def build() -> np.ndarray:
        built = [
            tensors[t].build([checkpoint.read_float32(source) for source in tensors[t].sources])
            for t in targets
        ]
        return np.concatenate(built, axis=1) if len(built) > 1 else built[0]

    return _Weight(build, tuple(targets))


@dataclass
class _Sums:
    """Sees every product of a model's parameters. ``targets``: parameter -> names under which its input is
    summed."""

    targets: dict[str, tuple[str, ...]]
    squares: dict[str, dict[int, "torch.Tensor"]] = field(
        default_factory=dict
    )  # parameter -> matrix -> (columns,) float64
    counts: dict[str, dict[int, int]] = field(default_factory=dict)
    _within: list[tuple[str, "torch.nn.Module"]] = field(default_factory=list)

    def entries(self, matrices: dict[str, int]) -> dict[str, Entry]:
        """``matrices``: GGUF name of those wanted -> how many it holds. Errors: StepFailed."""
        out: dict[str, Entry] = {}
        for parameter, squares in self.squares.items():
            for name in self.targets[parameter]:
                if name not in matrices:
                    continue
                columns = len(next(iter(squares.values())))
                sums, counts = np.zeros((matrices[name], columns)), np.zeros(matrices[name], np.int64)
                for index, values in squares.items():
                    sums[index], counts[index] = values.cpu().numpy(), self.counts[parameter][index]
                if not np.isfinite(sums).all():
                    raise StepFailed(f"activations at {parameter} are not finite; the checkpoint is damaged")
                out[name] = Entry(sums.astype(np.float32), counts)
        return out

    @contextmanager
    def collecting(self, model: "torch.nn.Module") -> Iterator[None]:
        from torch.overrides import TorchFunctionMode

        sums = self

        class Products(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if (
                    sums._within
                    and (operands := _operands().get(func)) is not None
                    and len(args) > max(operands)
                ):
                    sums._see(*(args[index] for index in operands))
                return func(*args, **(kwargs or {}))

        handles = []
        for name, module in model.named_modules():
            if any(f"{name}.{own}" in self.targets for own, _ in module.named_parameters(recurse=False)):
                handles.append(
                    module.register_forward_pre_hook(
                        lambda module, _, name=name: self._within.append((name, module))
                    )
                )
                handles.append(module.register_forward_hook(lambda *_: self._within.pop() and None))
        try:
            with Products():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _see(self, entering: Any, weight: Any) -> None:
        """A product within a module: with which of its parameters, and which matrix of that one?"""
        import torch

        name, module = self._within[-1]
        for own, parameter in module.named_parameters(recurse=False):
            if weight.untyped_storage().data_ptr() != parameter.untyped_storage().data_ptr():
                continue
            key = f"{name}.{own}"
            matrix = weight.storage_offset() // parameter.stride(0) if parameter.dim() > 2 else 0
            squares = entering.reshape(-1, entering.shape[-1]).square().sum(0, dtype=torch.float64)
            mine, counts = self.squares.setdefault(key, {}), self.counts.setdefault(key, {})
            mine[matrix] = mine[matrix] + squares if matrix in mine else squares
            counts[matrix] = counts.get(matrix, 0) + entering.numel() // entering.shape[-1]


def _operands() -> dict[Any, tuple[int, int]]:
    """Functions by which modules multiply -> positions of what enters, and of the weight."""
    import torch

    plain = (torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
    return {**dict.fromkeys(plain, (0, 1)), torch.addmm: (1, 2)}
