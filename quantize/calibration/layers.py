"""A model whose weights are read, module by module, as the forward pass needs them: bounded memory for any
size."""

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from quantize.calibration.kept_states import Keep, keep_states
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import BadInput
from quantize.hf.conversions import Part, parameter_parts, read_buffers
from quantize.hf.names import MULTIPLYING_ROUTERS, empty_model
from quantize.numerics.activations import on_e4m3, round_activations
from quantize.quiet import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

#: modules that use the weights of those within them, which must be there with their own
WHOLE = ("JetMoeDecoderLayer", "DbrxBlock", *MULTIPLYING_ROUTERS)
#: text models of which somebody's code asks where the embedding's weight lies, or reads a row of it
ASKS_EMBEDDING = ("llama4_text", "gemma4_text")
TRIM_BYTES = 1 << 27  # read between two returns of free memory to the system


class _Weights(Mapping[str, "torch.Tensor"]):
    """Parameter name -> float32 tensor, read when asked for and not kept."""

    def __init__(self, names: Mapping[str, Any], read: Callable[[Any], np.ndarray]):
        self._names, self._read, self._since_trim = names, read, 0

    def __getitem__(self, name: str) -> "torch.Tensor":
        import torch

        values = np.array(self._read(self._names[name]), dtype=np.float32)
        self._since_trim += values.nbytes
        if self._since_trim > TRIM_BYTES:
            self._since_trim = 0
            return_memory()
        return torch.from_numpy(values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def streamed_model(
    checkpoint: Checkpoint, read: Callable[[str], np.ndarray], extra: frozenset[str] = frozenset()
) -> "PreTrainedModel":
    """The source architecture in float32 on the CPU, on weights that ``read(name)`` returns by their names in
    the checkpoint.

    Buffers that no file holds (rotary frequencies, an embedding's scale) are real from the start. ``extra``
    names parameters that ``read`` knows although the checkpoint does not hold them: ``lm_head.weight`` where
    a tied one was stored separately.

    Errors: Unsupported where transformers lacks the architecture, or a tensor has no place in it.
    """
    model = empty_model(checkpoint, dtype="float32", tied=False if extra else None)
    parts = {**parameter_parts(checkpoint, model), **{name: Part((name,)) for name in extra}}
    missing = [name for name, _ in model.named_parameters(remove_duplicate=False) if name not in parts]
    if missing:
        raise BadInput(f"{checkpoint.source}: holds no weights for {missing[0]}; fetch the whole checkpoint")
    read_buffers(checkpoint, model, read)
    stream_weights(model, parts, lambda part: part.read(read))
    return model


def stream_weights(
    model: "torch.nn.Module", names: Mapping[str, Any], read: Callable[[Any], np.ndarray], device: str = "cpu"
) -> None:
    """Let ``model``, empty, read its weights when a module needs them; ``names``: parameter -> what ``read``
    knows it by."""
    with quiet():
        from accelerate import cpu_offload

        weights: Any = _Weights(names, read)
        cpu_offload(
            model.eval(),
            execution_device=device,
            offload_buffers=False,
            state_dict=weights,
            preload_module_classes=list(WHOLE),
        )
        config: Any = getattr(model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        if getattr(text, "model_type", "") in ASKS_EMBEDDING:
            _hold_embedding(model, weights)


def _hold_embedding(model: Any, weights: Mapping[str, "torch.Tensor"]) -> None:
    import torch
    from accelerate.hooks import remove_hook_from_module

    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    remove_hook_from_module(embedding)
    embedding.weight = torch.nn.Parameter(weights[f"{name}.weight"], requires_grad=False)


def return_memory() -> None:
    """Free memory goes back to the system, where that has a call for it."""
    _malloc_trim()(0)


@cache
def _malloc_trim() -> Callable[[int], int]:
    """Gives free memory back to the system. Left to itself, glibc keeps blocks of dropped weights on a heap
    that small ones hold up, and memory grows with every layer."""
    found: Callable[[int], int] | None = (
        getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    )
    return found or (lambda _: 0)


def round_like_runtime(
    model: "PreTrainedModel", checkpoint: Checkpoint, kinds: dict[str, str], gelu_table: bool
) -> None:
    """Round what enters each linear layer whose tensor ``kinds`` names (``round_activations``; ``bf16_io``:
    in and out).

    For experts that transformers keeps in one tensor: what enters and leaves them, not what is between.
    ``kv_fp8_K_V`` of an attention module, by its name: its keys and values, with scales K and V.
    ``gelu_table``: also the input and output of a GELU, which ggml looks up in a table of float16 between -10
    and 10.
    """
    import torch

    def looked_up(gelu: torch.nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return torch.where(inputs.abs() < 10, gelu.forward(inputs.half().float()).half().float(), output)

    parts = parameter_parts(checkpoint, model)
    for name, module in model.named_modules():
        if name in kinds:
            keep_states(module, _on_scales(*map(float, kinds[name].split("_")[2:])))
            continue
        alone = isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
        if alone or module is model.get_output_embeddings():
            part = parts.get(f"{name}.weight")
        else:  # stacked experts
            part = next(
                (
                    parts[f"{name}.{p}"]
                    for p, _ in module.named_parameters(recurse=False)
                    if f"{name}.{p}" in parts
                ),
                None,
            )
            part = part if part and part.make else None
        kind = kinds.get(part.sources[0]) if part else None
        if kind is None:
            continue
        rounded = kind.removesuffix("_io")
        module.register_forward_pre_hook(
            lambda _, inputs, kind=rounded: (round_activations(inputs[0], kind), *inputs[1:])
        )
        if kind.endswith("_io"):
            module.register_forward_hook(lambda _, __, output, kind=rounded: round_activations(output, kind))
    for gelu in model.modules() if gelu_table else ():
        if "GELU" in type(gelu).__name__.upper() and not list(gelu.parameters()):
            gelu.register_forward_hook(lambda gelu, inputs, output: looked_up(gelu, inputs[0], output))


def _on_scales(of_keys: float, of_values: float) -> Keep:
    return lambda keys, values: (on_e4m3(keys, of_keys), on_e4m3(values, of_values))
