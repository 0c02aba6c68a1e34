"""Which weights of a model are in memory: those of the layer at hand, and of other modules while they run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from quantize.calibration.layers import return_memory
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import BadInput
from quantize.hf.conversions import parameter_parts, read_buffers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Resident:
    """``model``: without weights (``empty_model``); ``layers``: its decoder layers, by name.

    Of what is not in a layer, a module's own weights are read when it runs and go with ``release``, but those
    of modules that hold layers stay. A parameter that several layers share stays too, with whatever was
    written into it.

    Errors: Unsupported, BadInput where the checkpoint does not hold every weight.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: "PreTrainedModel",
        layers: "Mapping[str, torch.nn.Module]",
        dtype: "torch.dtype",
        device: str,
    ):
        self._checkpoint, self._dtype, self._device = checkpoint, dtype, device
        self._parts = parameter_parts(checkpoint, model)
        self._outside: list[tuple[str, torch.nn.Module]] = []
        self._borrowed: list[tuple[torch.nn.Module, str, torch.Tensor]] = []
        self._shared: dict[int, torch.Tensor | None] = {}
        seen: dict[int, str] = {}
        for layer, module in layers.items():
            for parameter in module.parameters():
                if seen.setdefault(id(parameter), layer) != layer:
                    self._shared[id(parameter)] = None
        self.needed = {
            f"{name}.{own}" if name else own
            for name, module in model.named_modules()
            for own, _ in module.named_parameters(recurse=False)
        }
        missing = sorted(self.needed - self._parts.keys() - self._tied(model))
        if missing:
            raise BadInput(
                f"{checkpoint.source}: holds no weights for {missing[0]}; fetch the whole checkpoint"
            )
        read_buffers(checkpoint, model, checkpoint.read_float32)
        self._first = model.get_input_embeddings()
        inside = {id(part) for module in layers.values() for part in module.modules()}
        for name, module in model.named_modules():
            if id(module) in inside:
                continue
            for own, buffer in module.named_buffers(recurse=False):
                module._buffers[own] = buffer.to(device)
            if next(module.parameters(recurse=False), None) is None:
                continue
            if any(layer.startswith(f"{name}." if name else "") for layer in layers):
                self.load(name, module, recurse=False)
            else:
                self._outside.append((name, module))
        for module in layers.values():
            for part in module.modules():
                for own, buffer in part.named_buffers(recurse=False):
                    part._buffers[own] = buffer.to(device)

    def _tied(self, model: "PreTrainedModel") -> set[str]:
        """A head that is not run here may have no part of its own."""
        head = model.get_output_embeddings()
        return {f"{name}.weight" for name, module in model.named_modules() if module is head}

    def load(self, name: str, module: "torch.nn.Module", recurse: bool = True) -> None:
        """Read every parameter of ``module``, called ``name`` in the model, and its parts."""
        import torch

        made: dict[int, torch.Tensor] = {}
        for inner, part in module.named_modules() if recurse else [("", module)]:
            for own, empty in list(part.named_parameters(recurse=False)):
                if not empty.is_meta:
                    continue
                value = made.get(id(empty), self._shared.get(id(empty)))
                if value is None:
                    value = self._read(".".join(filter(None, (name, inner, own))))
                made[id(empty)] = value
                if id(empty) in self._shared:
                    self._shared[id(empty)] = value
                self._borrowed.append((part, own, empty))
                part._parameters[own] = torch.nn.Parameter(value, requires_grad=False)

    def _read(self, name: str) -> "torch.Tensor":
        import torch

        read = self._checkpoint.read_float32
        values = np.array(self._parts[name].read(read), dtype=np.float32)
        return torch.from_numpy(values).to(device=self._device, dtype=self._dtype)

    def unload(self, module: "torch.nn.Module") -> None:
        """``module`` and its parts are without weights again."""
        gone = {id(part) for part in module.modules()}
        kept = []
        for part, own, empty in self._borrowed:
            if id(part) in gone:
                part._parameters[own] = empty  # type: ignore[assignment]
            else:
                kept.append((part, own, empty))
        self._borrowed = kept
        return_memory()

    @contextmanager
    def on_demand(self) -> Iterator[None]:
        """While inside, modules outside the layers read their weights when they run; the embedding now, as
        some models ask where its weight lies."""
        for name, module in self._outside:
            if module is self._first:
                self.load(name, module, recurse=False)
        handles = [
            module.register_forward_pre_hook(
                lambda module, _, name=name: self.load(name, module, recurse=False)
            )
            for name, module in self._outside
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def release(self) -> None:
        """What modules outside the layers have read."""
        for _, module in self._outside:
            if any(not p.is_meta for p in module.parameters(recurse=False)):
                self.unload(module)

    @staticmethod
    def named(layer: str, module: "torch.nn.Module", among: frozenset[str]) -> "dict[str, torch.Tensor]":
        """Of ``layer``, loaded, the parameters that are ``among``."""
        return {
            full: parameter
            for own, parameter in module.named_parameters(remove_duplicate=False)
            if (full := f"{layer}.{own}") in among
        }
