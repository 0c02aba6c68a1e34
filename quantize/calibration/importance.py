"""An importance matrix of one's own: what llama-imatrix collects, from the transformers model instead.

For every matrix of every block, the sum over all tokens of the square of what enters each of its columns; of
experts, over the tokens that the router sent to each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantize.calibration.collectors import Moment, Moments, SecondMoments
from quantize.calibration.layer_pass import LayerPass
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import StepFailed
from quantize.gguf.families.base import Mapped
from quantize.gguf.families.plan import plan
from quantize.gguf.importance.file import Entry, ImportanceMatrix
from quantize.gguf.mixture import may_be_quantized
from quantize.gguf.tokenizer.special import added_around
from quantize.hf.conversions import Part, parameter_parts
from quantize.hf.matrices import decoder_linears
from quantize.hf.names import empty_model


@dataclass(frozen=True)
class Computed:
    """``missing``: matrices of blocks that no product was seen of, and that llama-quantize will have to do
    without."""

    matrix: ImportanceMatrix
    missing: tuple[str, ...]


def compute_imatrix(
    checkpoint: Checkpoint, ids: np.ndarray, *, dataset: str, device: str = "cpu"
) -> Computed:
    """Over ``ids`` (windows, tokens), in float32. ``dataset``: the name of the text, for the file. Errors: as
    ``source_moments`` and ``importance_matrix``."""
    moments = source_moments(checkpoint, ids, device=device)
    return importance_matrix(checkpoint, moments, dataset, ids.shape)


def source_moments(
    checkpoint: Checkpoint,
    ids: np.ndarray,
    *,
    before: Moments | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    state_bytes: int | None = None,
    scratch: Path | None = None,
    progress: Callable[[int], None] = lambda layers: None,
) -> Moments:
    """Of every matrix of the decoder layers of the model as it is, over ``ids`` (windows, tokens): the sums
    of squares of what enters it, float64, added to those ``before``. ``progress`` gets 1 after each layer.
    Errors: see ``LayerPass``."""
    moments = SecondMoments(before)
    through = LayerPass(
        checkpoint,
        ids,
        layers=decoder_linears(checkpoint).layer_names,
        parameters=layer_parameters(checkpoint),
        dtype=dtype,
        device=device,
        state_bytes=state_bytes,
        scratch=scratch,
    )
    for layer in through:
        layer.pass_on(moments)
        progress(1)
    return moments.result()


def layer_parameters(checkpoint: Checkpoint) -> frozenset[str]:
    """Names of the matrices of the decoder layers in transformers' model, those that choose experts too."""
    layers = tuple(f"{name}." for name in decoder_linears(checkpoint).layer_names)
    model = empty_model(checkpoint, buffers=False)
    return frozenset(
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.ndim > 1 and name.startswith(layers)
    )


def importance_matrix(
    checkpoint: Checkpoint, moments: Moments, dataset: str, shape: tuple[int, ...]
) -> Computed:
    """``moments`` under the names of GGUF, of windows of ``shape`` (windows, tokens). Errors: Unsupported
    where GGUF lacks the architecture; StepFailed where activations are not finite."""
    tensors = {mapped.name: mapped for mapped in plan(checkpoint).tensors}
    blocks = {name: m for name, m in tensors.items() if name.startswith("blk.") and len(m.shape) > 1}
    # A weight of three dimensions that is not of experts (latent attention's) meets other vectors in
    # llama.cpp's graph.
    wanted = {name: m for name, m in blocks.items() if len(m.shape) == 2 or "_exps." in name}
    by_source: dict[str, list[str]] = {}
    for name, mapped in wanted.items():
        for source in mapped.sources:
            by_source.setdefault(source, []).append(name)
    parts = parameter_parts(checkpoint, empty_model(checkpoint, buffers=False))
    entries: dict[str, Entry] = {}
    for parameter, found in moments.items():
        for name in _targets(parts.get(parameter), by_source):
            entries[name] = _entry(parameter, found, wanted[name])
    missing = tuple(
        name for name, m in blocks.items() if name not in entries and may_be_quantized(name, m.shape)
    )
    return Computed(ImportanceMatrix(entries, (dataset,), shape[0], shape[1]), missing)


def with_first_token(checkpoint: Checkpoint, ids: np.ndarray) -> np.ndarray:
    """``ids`` (windows, tokens), each window beginning with the token that the tokenizer puts before a text,
    if it puts one."""
    before, _ = added_around(SourceTokenizer.open(checkpoint.folder))
    return (
        np.concatenate([np.full((len(ids), 1), before[0]), ids[:, 1:]], axis=1) if len(before) == 1 else ids
    )


def _targets(part: Part | None, by_source: Mapping[str, list[str]]) -> list[str]:
    """GGUF tensors that are made of what a parameter is made of: several where one of them is fused."""
    sources = part.sources if part else ()
    return list(dict.fromkeys(name for source in sources for name in by_source.get(source, ())))


def _entry(parameter: str, found: dict[int, Moment], mapped: Mapped) -> Entry:
    matrices = mapped.shape[0] if len(mapped.shape) > 2 else 1
    columns = len(next(iter(found.values())).sums)
    sums, counts = np.zeros((matrices, columns)), np.zeros(matrices, np.int64)
    for index, moment in found.items():
        sums[index], counts[index] = moment.sums, moment.count
    if not np.isfinite(sums).all():
        raise StepFailed(f"activations at {parameter} are not finite; the checkpoint is damaged")
    if mapped.columns is not None:
        sums[:] = sums[:, mapped.columns]
    return Entry(sums.astype(np.float32), counts)
