"""What engines share that load the whole model and quantize it in memory: what they took, what they made, and
the names under which it is stored."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.dtypes import TORCH
from quantize.engines.base import Computed
from quantize.hf.loaded import Loaded, sources_again
from quantize.hf.names import Layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def took(computed: Computed, model: "PreTrainedModel", layers: Layers, checkpoint: Checkpoint) -> None:
    """What of the model is about to be quantized, where loading did not round it."""
    for name, parameter in model.named_parameters():
        source = layers.source.get(name)
        info = checkpoint.tensors.get(source) if source is not None else None
        if source is None or info is None or parameter.shape != info.shape:
            continue
        if TORCH.get(info.dtype) == str(parameter.dtype).removeprefix("torch."):
            computed.took(source, parameter.detach().float().cpu().numpy())


def add_computed(
    computed: Computed,
    model: "PreTrainedModel",
    found: Loaded,
    checkpoint: Checkpoint,
    values: Callable[["torch.Tensor"], "torch.Tensor"],
) -> None:
    """``values``: the library's own dequantization of a parameter, in float32. A tied head is its
    embedding."""
    import torch

    parameters = dict(model.named_parameters(remove_duplicate=False))

    def array(name: str) -> np.ndarray:
        with torch.no_grad():
            exact: np.ndarray = values(parameters[name]).float().cpu().numpy()
        return exact

    head = f"{found.layers.head}.weight" if found.layers.tied else ""
    parts = {name: part for name, part in found.parts.items() if name in parameters and name != head}
    for source, exact in sources_again(parts, checkpoint, array):
        computed.add(source, exact)


def stored_again(
    state: "dict[str, torch.Tensor]", found: Loaded, done: set[str], checkpoint: Checkpoint
) -> "dict[str, torch.Tensor]":
    """``state`` with what was not quantized under the checkpoint's names and in its shapes, as the library's
    save_pretrained writes it and other programs read it; a quantized weight cannot be taken apart."""
    import torch

    quantized = found.sources(done)
    kept = {n: part for n, part in found.parts.items() if n in state and not quantized & set(part.sources)}
    dtypes = {source: state[name].dtype for name, part in kept.items() for source in part.sources}

    def bits(name: str) -> np.ndarray:
        tensor = state[name].cpu()
        array: np.ndarray = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return array

    stored = {name: tensor for name, tensor in state.items() if name not in kept}
    for source, array in sources_again(kept, checkpoint, bits):
        stored[source] = torch.from_numpy(np.ascontiguousarray(array)).view(dtypes[source])
    return stored
