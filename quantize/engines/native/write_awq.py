"""AWQ by this program: from a checkpoint and calibration text to the files of an artifact."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantize.artifact.artifact import Note
from quantize.calibration.collectors import SecondMoments
from quantize.calibration.folding import Fold, find_folds
from quantize.calibration.importance import layer_parameters
from quantize.calibration.kept_moments import keep_moments
from quantize.calibration.layer_pass import LayerPass
from quantize.calibration.windows import Calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.dtypes import FLOATS, TORCH
from quantize.engines.base import Conversion
from quantize.engines.native.awq import AwqSettings, awq_solver
from quantize.engines.native.dense import NATIVE
from quantize.engines.native.importance import moments_key
from quantize.engines.native.layers import quantized_layers
from quantize.engines.native.packed import write_configs
from quantize.engines.native.precision import arithmetic_of
from quantize.engines.native.write import check_text, write_packed
from quantize.formats.packed import PackedFormat
from quantize.hf.conversions import parameter_parts
from quantize.hf.matrices import Linear
from quantize.hf.names import empty_model
from quantize.recipe import RunOptions

#: tokens on which places for scales are looked for: more than a layer needs to be told apart from another
PROBE_TOKENS = 64
_NUMBERS = re.compile(r"(?<=\.)\d+(?=\.)")


def write_awq(
    checkpoint: Checkpoint,
    format: PackedFormat,
    stage: Path,
    run: RunOptions,
    calibration: Calibration,
    rows: np.ndarray,
    *,
    key: dict[str, Any],
    title: str,
) -> Conversion:
    """``rows`` (n, length): the windows of ``calibration`` that are used. ``key``: of the recipe, see
    ``quantized_layers``. Errors: BadInput where the text is too short; as ``quantized_layers``."""
    check_text(calibration)
    assert format.decoder is not None
    sources = _single(checkpoint)
    folds = _folds(checkpoint, format, rows, run, sources)
    stored = {name: TORCH[checkpoint.tensors[source].dtype] for name, source in sources.items()}
    arithmetic, squares = arithmetic_of(run, checkpoint), SecondMoments()
    with quantized_layers(
        checkpoint,
        format.decoder,
        format.linears,
        rows,
        run,
        awq_solver(AwqSettings(format.grid, folds, stored), squares),
        key=key,
        arithmetic=arithmetic,
        title=title,
        original=True,
        renamed=sources,
        seen=layer_parameters(checkpoint),
    ) as done:
        if not done.went_on:  # an importance matrix over these windows need not meet them again
            keep_moments(moments_key(checkpoint, rows, run, arithmetic), squares.result())
        weight_bytes = write_packed(checkpoint, format, done, stage, run)
    write_configs(checkpoint, format, stage)
    notes = [*_unscaled(format.linears, folds), *done.notes]
    if done.went_on:
        what = f"{done.went_on} layers are of an interrupted conversion"
        notes.append(Note(tensor="*", what=what, why="their codes were finished, and are the same"))
    return Conversion(
        weight_bytes,
        NATIVE.label,
        libraries=("torch", "transformers"),
        notes=notes,
        details={"compute_dtype": arithmetic.name, "calibration_tokens_used": int(rows.size)},
        computed=done.computed,
        work=(done.parts.folder,),
    )


def _single(checkpoint: Checkpoint) -> dict[str, str]:
    """Parameters that are one tensor of the source, unchanged -> that tensor: what can be written back."""
    parts = parameter_parts(checkpoint, empty_model(checkpoint, buffers=False))
    return {
        name: part.sources[0]
        for name, part in parts.items()
        if part.make is None and checkpoint.tensors[part.sources[0]].dtype in FLOATS
    }


def _folds(
    checkpoint: Checkpoint, format: PackedFormat, rows: np.ndarray, run: RunOptions, single: Mapping[str, str]
) -> dict[str, tuple[Fold, ...]]:
    """By name of the layer. In float32, whatever the pass over the whole text computes in."""
    assert format.decoder is not None
    packed = {linear.name for linear in format.linears}
    whole: dict[str, bool] = {}  # quantized parameters -> whether all of their matrices are
    for linear in format.decoder:
        whole[linear.parameter] = whole.get(linear.parameter, True) and linear.name in packed
    may_change = {name for name, all_of_it in whole.items() if all_of_it} | (single.keys() - whole.keys())
    found: dict[str, tuple[Fold, ...]] = {}
    known: dict[tuple[Any, ...], tuple[str, tuple[Fold, ...]]] = {}
    probe = rows[:1, :PROBE_TOKENS]
    blocks = _head_sizes(checkpoint.config)
    names = tuple(parameter_names(checkpoint))
    through = LayerPass(
        checkpoint,
        probe,
        layers=format.decoder.layer_names,
        parameters=names,
        device=run.resolved_device,
        scratch=run.scratch,
    )
    for layer in through:
        kind = tuple((n.removeprefix(layer.name), tuple(p.shape)) for n, p in layer.parameters.items())
        before = known.get(kind)
        again = [_renamed(fold, before[0], layer.name) for fold in before[1]] if before else None
        every = find_folds(layer.parameters, layer.run, blocks, again)
        known.setdefault(kind, (layer.name, every))
        found[layer.name] = tuple(
            fold
            for fold in every
            if may_change.issuperset((*fold.place.names, *fold.place.biases, *fold.consumers))
            and any(whole.get(name) for name in fold.consumers)
        )
    return found


def parameter_names(checkpoint: Checkpoint) -> list[str]:
    return [name for name, _ in empty_model(checkpoint, buffers=False).named_parameters()]


def _renamed(fold: Fold, old: str, new: str) -> Fold:
    """A fold of another layer of the same kind."""
    from dataclasses import replace

    def move(name: str) -> str:
        return new + name.removeprefix(old)

    place = replace(
        fold.place,
        names=tuple(map(move, fold.place.names)),
        biases=tuple(map(move, fold.place.biases)),
    )
    return replace(fold, place=place, consumers={move(name): axis for name, axis in fold.consumers.items()})


def _head_sizes(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Rows by which a projection that joins queries, keys and values may be taken apart."""
    inside = config.get("text_config")
    config = inside if isinstance(inside, dict) else config
    sizes = [config.get(name) for name in ("head_dim", "v_head_dim", "global_head_dim", "kv_channels")]
    hidden = next((config[n] for n in ("hidden_size", "n_embd", "d_model") if config.get(n)), 0)
    heads = next((config[n] for n in ("num_attention_heads", "n_head", "n_heads") if config.get(n)), 0)
    if hidden and heads:
        sizes.append(hidden // heads)
    return tuple(dict.fromkeys(size for size in sizes if isinstance(size, int) and size > 0))


def _unscaled(linears: Sequence[Linear], folds: Mapping[str, tuple[Fold, ...]]) -> list[Note]:
    """A note for every kind of matrix that some layer has no place for the scales of."""
    scaled = {name for each in folds.values() for fold in each for name in fold.consumers}
    kinds: dict[str, list[Linear]] = {}
    for linear in linears:
        if linear.parameter not in scaled:
            kinds.setdefault(_NUMBERS.sub("*", linear.name), []).append(linear)
    why = "what its inputs are computed by cannot take the inverse of scales without changing the model"
    return [
        Note(tensor=kind, what=f"no scales: {len(mine)} matrices are clipped and rounded only", why=why)
        for kind, mine in kinds.items()
    ]
