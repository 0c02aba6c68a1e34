"""Calibration text through a model, decoder layer by decoder layer, each on what the changed ones before it
give.

One layer's weights are in memory at a time, and the hidden states of all batches, which go to files where
the budget does not hold them. A layer runs as often as its caller asks for statistics; what it gives to the
next one is computed when the caller goes on, with the weights that it has then.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantize.calibration.collectors import Collector
from quantize.calibration.forwards import Call, Forward, pausing
from quantize.calibration.groups import Group, Trace, grouped
from quantize.calibration.products import parameter_finder, watching
from quantize.calibration.repeated import Memory, repeating
from quantize.calibration.resident import Resident
from quantize.calibration.spill import Spill, tensors_in
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import StepFailed, Unsupported
from quantize.hf.names import empty_model
from quantize.hf.products import float32_attention
from quantize.hf.wrappers import text_model
from quantize.quiet import no_warnings
from quantize.staging import temporary_folder

if TYPE_CHECKING:
    import torch

#: tokens that go through a layer at once, at least one row: fixed, because the order of additions follows
BATCH_TOKENS = 2048


def batch_rows(length: int, batch_tokens: int = BATCH_TOKENS) -> int:
    """Rows of ``length`` tokens that go through a layer at once."""
    return max(1, batch_tokens // length)


class LayerPass:
    """``rows`` (n, length) of token ids through the model of ``checkpoint``; ``layers``: names of its decoder
    layers in transformers' model; ``parameters``: names of those that are asked about; ``head``: the name of
    the output layer, where it is to be the last one, else None. ``state_bytes``: of hidden states in memory;
    ``repeated_bytes``: of a layer's products, which are not computed again then (``repeated``).

    Iterating gives a ``Layer`` at a time, in the order in which the model calls them. Errors: Unsupported
    where transformers lacks the architecture or runs a layer twice; StepFailed where a weight or an
    activation is not finite.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        rows: np.ndarray,
        *,
        layers: Sequence[str],
        parameters: Iterable[str],
        head: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        state_bytes: int | None = None,
        repeated_bytes: int = 0,
        scratch: Path | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ):
        self.checkpoint, self.rows, self.dtype, self.device = checkpoint, rows, dtype, device
        self._names, self._parameters, self._head = tuple(layers), frozenset(parameters), head
        self._state_bytes, self._repeated_bytes, self._scratch = state_bytes, repeated_bytes, scratch
        size = batch_rows(rows.shape[1], batch_tokens)
        self._batches = [rows[first : first + size] for first in range(0, len(rows), size)]
        self.output: list[Any] = []

    def __iter__(self) -> "Iterator[Layer]":
        """``output`` holds what the model returned for each batch, once it is through (not with a head)."""
        import torch

        model: Any = empty_model(self.checkpoint, dtype=self.dtype).eval()
        if getattr(model, "_can_set_experts_implementation", lambda: False)():
            model.set_experts_implementation("eager")  # one product per expert, in which the expert shows
        names = (*self._names, *((self._head,) if self._head else ()))
        modules = {name: model.get_submodule(name) for name in names}
        weights = Resident(self.checkpoint, model, modules, getattr(torch, self.dtype), self.device)
        fixed = frozenset(
            each.untyped_storage().data_ptr()
            for each in (*model.buffers(), *model.parameters())
            if not each.is_meta
        )
        body = model if self._head else _body(model)
        forwards = [Forward(partial(self._whole, body, batch)) for batch in self._batches]
        with ExitStack() as stack:
            for forward in forwards:
                stack.callback(forward.close)
            folder = stack.enter_context(temporary_folder("states", self._scratch))
            spill = Spill(folder, self._state_bytes, fixed)
            stack.enter_context(pausing(modules))
            stack.enter_context(weights.on_demand())
            calls: list[Call] = []
            with torch.no_grad():
                for number, forward in enumerate(forwards):
                    self._take(forward.advance(), number, calls, spill)
                weights.release()
            done: set[str] = set()
            while calls:
                name = calls[0].layer
                if name in done:
                    raise Unsupported(
                        f"{self.checkpoint.source}: its model runs {name} twice; calibrated methods need "
                        "each decoder layer to run once"
                    )
                assert all(call.layer == name for call in calls), "batches went different ways"
                done.add(name)
                weights.load(name, modules[name])
                held = weights.named(name, modules[name], self._parameters)
                memory = Memory(self._repeated_bytes)
                layer = Layer(len(done) - 1, name, modules[name], held, memory, calls, spill)
                layer._go_on = partial(self._go_on, layer, forwards, calls, spill)
                yield layer
                if name == self._head:
                    break
                with torch.no_grad():
                    calls = layer._go_on() if layer._following is None else layer._following
                weights.unload(modules[name])
                weights.release()

    def _whole(self, body: Any, batch: np.ndarray) -> Any:
        """One batch's forward pass, in a thread of its own."""
        import torch

        ids = torch.from_numpy(np.ascontiguousarray(batch)).to(self.device)
        with torch.no_grad():
            return body(input_ids=ids, use_cache=False)

    def _go_on(self, layer: "Layer", forwards: list[Forward], calls: list[Call], spill: Spill) -> list[Call]:
        """The layer's outputs to each pass; where they get to."""
        following: list[Call] = []
        for number, forward in enumerate(forwards):
            spill.get(number)
            call = calls[number]
            with no_warnings(), float32_attention(), layer.repeating(number, keeps=False):
                output = layer.module.forward(*call.args, **call.kwargs)
            layer.memory.drop(number)
            self._check_finite(layer.name, output)
            spill.drop(number)
            calls[number] = call = None  # type: ignore[call-overload,assignment]
            self._take(forward.advance(output), number, following, spill)
            del output
        return following

    def _take(self, reached: Any, number: int, calls: list[Call], spill: Spill) -> None:
        if isinstance(reached, Call):
            calls.append(reached)
            spill.put(number, (reached.args, reached.kwargs))
        else:
            self.output.append(reached.output)

    def _check_finite(self, name: str, output: Any) -> None:
        import torch

        first = next(tensors_in(output))
        if not bool(torch.isfinite(first.sum(dtype=torch.float32))) and not bool(torch.isfinite(first).all()):
            raise StepFailed(
                f"{self.checkpoint.source}: activations after {name} are NaN or Inf on the calibration text; "
                "check the model's weights, or compute in float32"
            )


def _body(model: Any) -> Any:
    """Without the output layer, which may lie within the text model of a model that also sees."""
    text = text_model(model)
    inside = model.get_submodule(text) if text else model
    return model.base_model if model.base_model is not model else inside.base_model


class _Enough(Exception):
    """Everything that was asked for has been seen of this batch."""


@dataclass
class Layer:
    """One decoder layer with its weights: ``module`` is transformers', ``parameters`` are those asked about,
    by name, which may be written into. ``groups``: see ``Group``, in the order in which they are used."""

    index: int
    name: str
    module: "torch.nn.Module"
    parameters: "dict[str, torch.Tensor]"
    memory: Memory
    _calls: list[Call]
    _spill: Spill
    _groups: tuple[Group, ...] | None = None
    _writes: bool = False
    _go_on: Callable[[], list[Call]] = list
    _following: list[Call] | None = None
    _others: int = -1

    @property
    def groups(self) -> tuple[Group, ...]:
        if self._groups is None:
            trace = Trace()
            self._run(0, trace.see, trace=trace)
            batched = frozenset(name for name, each in self.parameters.items() if each.dim() > 2)
            self._groups = grouped(trace, tuple(self.parameters), batched, self.name)
        return self._groups

    def run(self) -> Any:
        """What the layer, as it is now, returns for the first batch."""
        import torch

        self._spill.get(0)
        try:
            args, kwargs = _copied(self._calls[0].args, True), _copied(self._calls[0].kwargs, True)
            with torch.no_grad(), no_warnings(), float32_attention():
                return self.module.forward(*args, **kwargs)
        finally:
            self._spill.leave(0)

    def pass_on(self, *collectors: Collector[Any]) -> None:
        """Run every batch through the layer for the last time, as it is now: what it returns goes on to the
        next layer. ``collectors`` are given what enters each parameter, under its own name."""
        import torch

        def see(name: str, inputs: Any, matrix: int) -> None:
            for collector in collectors:
                collector.add(name, inputs, matrix)

        self.forget()
        with torch.no_grad(), watching(parameter_finder(self.parameters), see):
            self._following = self._go_on()

    def gather(self, groups: Sequence[Group], *collectors: Collector[Any]) -> None:
        """Run every batch through the layer as it is now and give what enters ``groups`` to ``collectors``,
        under the name of the parameter that leads (``Group.leader``). What the layer returns is dropped, and
        a batch stops where no more can come."""
        _ = self.groups
        wanted = {leader for group in groups for leader in group.leader.values()}
        leads = {name: group.leader[name] for group in self.groups for name in group.parameters}
        plain = {name for group in self.groups if group.plain for name in group.parameters}
        first, last = min(group.first for group in groups), max(group.last for group in groups)
        later = {
            name for group in self.groups for name in group.parameters if group.plain and group.first > last
        }
        counts = {
            name: group.counts[name] for group in groups if group.plain for name in group.leader.values()
        }

        for number in range(len(self._calls)):
            left = dict(counts) if wanted <= plain else None

            def see(name: str, inputs: Any, matrix: int, left: dict[str, int] | None = left) -> None:
                if name in later:
                    raise _Enough
                if name not in wanted or leads[name] != name:
                    return
                for collector in collectors:
                    collector.add(name, inputs, matrix)
                if left is not None:
                    left[name] -= 1
                    if not any(left.values()):
                        raise _Enough

            self._run(number, see, first)

    def forget(self) -> None:
        """Every product is computed again."""
        for number in range(len(self._calls)):
            self.memory.drop(number)

    def repeating(self, number: int, *, keeps: bool, first: int = 0) -> AbstractContextManager[None]:
        """A run of one batch that makes use of those before. ``keeps``: later ones may make use of it, up to
        the groups that begin with product ``first``."""
        used = {name for group in self._groups or () for name, count in group.counts.items() if count}
        factors = {id(self.parameters[name]) for name in used}
        others = sum(each._version for each in self.module.parameters() if id(each) not in factors)
        if others != self._others:
            self.forget()
            self._others = others
        unsettled = frozenset(
            name for group in self._groups or () if group.first >= first for name in group.parameters
        )
        return repeating(self.memory, number, self.parameters, unsettled, keeps)

    def _run(self, number: int, see: Any, first: int = 0, trace: Trace | None = None) -> None:
        import torch

        self._spill.get(number)
        call, copied = self._calls[number], trace is not None or self._writes
        args, kwargs = _copied(call.args, copied), _copied(call.kwargs, copied)
        before = [(each, each._version) for each in tensors_in((args, kwargs))]
        try:
            with (
                torch.no_grad(),
                no_warnings(),
                float32_attention(),
                watching(parameter_finder(self.parameters), see),
                self.repeating(number, keeps=trace is None, first=first),
            ):
                self.module.forward(*args, **kwargs)
        except _Enough:
            pass
        if trace is not None:
            self._writes = any(each._version != version for each, version in before)
            trace.release()
        self._spill.leave(number)


def _copied(values: Any, tensors: bool) -> Any:
    """Containers that the layer may write into, copied; tensors too, if said."""
    import torch

    if isinstance(values, torch.Tensor):
        return values.clone() if tensors else values
    if type(values) is dict:
        return {key: _copied(value, tensors) for key, value in values.items()}
    if type(values) in (tuple, list):
        return type(values)(_copied(value, tensors) for value in values)
    return values
