"""An importance matrix of one's own: what llama-imatrix collects, from the transformers model instead.

For every matrix of every block, the sum over all tokens of the square of what enters each of its columns; of
experts, over the tokens that the router sent to each. Weights are read module by module as the forward pass
comes to them, so memory is bounded by the largest module and the activations of ``PASS_TOKENS`` tokens,
whatever the model's size.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quantize.calibration.collectors import SecondMoments
from quantize.calibration.layers import stream_weights
from quantize.calibration.products import collecting
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import StepFailed, Unsupported
from quantize.gguf.families.base import Mapped
from quantize.gguf.families.plan import plan
from quantize.gguf.importance.file import Entry, ImportanceMatrix
from quantize.gguf.mixture import may_be_quantized
from quantize.gguf.tokenizer.special import added_around
from quantize.hf.conversions import read_buffers
from quantize.hf.names import empty_model

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

    ``progress`` gets the number of windows done after each pass. Errors: Unsupported where GGUF or
    transformers lacks the architecture; StepFailed where activations are not finite.
    """
    import torch

    tensors = {mapped.name: mapped for mapped in plan(checkpoint).tensors}
    model = empty_model(checkpoint)
    read_buffers(checkpoint, model, checkpoint.read_float32)
    if getattr(model, "_can_set_experts_implementation", lambda: False)():
        model.set_experts_implementation("eager")  # one product per expert, in which the expert shows
    body = model.base_model  # without the head, which llama-imatrix leaves out too
    weights = {
        name: _weight(checkpoint, tensors, name, model.base_model_prefix)
        for name, _ in body.named_parameters()
    }
    stream_weights(body, {name: name for name in weights}, lambda name: weights[name].read(), device)
    moments = SecondMoments()
    rows = max(1, PASS_TOKENS // ids.shape[1])
    with torch.no_grad(), collecting(body, frozenset(weights), moments):
        for first in range(0, len(ids), rows):
            part = torch.from_numpy(ids[first : first + rows]).to(device)
            body(input_ids=part, use_cache=False)
            progress(len(part))
    blocks = {name: m for name, m in tensors.items() if name.startswith("blk.") and len(m.shape) > 1}
    matrices = {name: m.shape[0] if len(m.shape) > 2 else 1 for name, m in blocks.items()}
    entries = _entries(moments, {name: weight.targets for name, weight in weights.items()}, matrices)
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
    """A parameter of the model: ``read`` returns it as float32; its activations belong to the GGUF
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


def _entries(
    moments: SecondMoments, targets: dict[str, tuple[str, ...]], matrices: dict[str, int]
) -> dict[str, Entry]:
    """``targets``: parameter -> GGUF names under which its input is summed; ``matrices``: GGUF name of those
    wanted -> how many it holds. Errors: StepFailed."""
    out: dict[str, Entry] = {}
    for parameter, found in moments.result().items():
        for name in targets[parameter]:
            if name not in matrices:
                continue
            columns = len(next(iter(found.values())).sums)
            sums, counts = np.zeros((matrices[name], columns)), np.zeros(matrices[name], np.int64)
            for index, moment in found.items():
                sums[index], counts[index] = moment.sums, moment.count
            if not np.isfinite(sums).all():
                raise StepFailed(f"activations at {parameter} are not finite; the checkpoint is damaged")
            out[name] = Entry(sums.astype(np.float32), counts)
    return out
