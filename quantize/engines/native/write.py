"""GPTQ by this program: from a checkpoint and calibration text to the files of an artifact."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quantize.artifact.artifact import Note
from quantize.calibration.windows import Calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tensors import torch_bytes
from quantize.dtypes import FLOATS
from quantize.engines.base import Conversion
from quantize.engines.native.dense import NATIVE
from quantize.engines.native.gptq import GptqSettings, gptq_solver
from quantize.engines.native.layers import Quantized, quantized_layers
from quantize.engines.native.packed import write_configs
from quantize.engines.native.precision import arithmetic_of
from quantize.engines.native.spool import Spool
from quantize.errors import BadInput
from quantize.formats.packed import PackedFormat
from quantize.kernels.columns import column_maker
from quantize.recipe import RunOptions
from quantize.staging import held_folder

#: with fewer tokens than this, Hessians say next to nothing
FEWEST_TOKENS = 128


@dataclass(frozen=True)
class GptqChoices:
    """What a recipe says beyond its format: see ``GptqSettings``."""

    damping: float
    order: Literal["activation", "none"]
    true_sequential: bool
    refinements: int
    on_failure: Literal["fail", "rtn"]


def write_gptq(
    checkpoint: Checkpoint,
    format: PackedFormat,
    stage: Path,
    run: RunOptions,
    calibration: Calibration,
    choices: GptqChoices,
    *,
    key: dict[str, Any],
    title: str,
) -> Conversion:
    """``key``: of the recipe, see ``quantized_layers``. Errors: BadInput where the text is too short; as
    ``quantized_layers`` and ``gptq_solver``."""
    check_text(calibration)
    settings = GptqSettings(
        {linear.name: format.grid_of(linear) for linear in format.linears},
        choices.order,
        choices.damping,
        choices.true_sequential,
        choices.refinements,
        choices.on_failure,
    )
    assert format.decoder is not None
    arithmetic = arithmetic_of(run)
    with quantized_layers(
        checkpoint,
        format.decoder,
        format.linears,
        calibration.ids,
        run,
        gptq_solver(settings),
        key=key,
        arithmetic=arithmetic,
        title=title,
    ) as done:
        weight_bytes = write_packed(checkpoint, format, done, stage, run)
    write_configs(
        checkpoint,
        format,
        stage,
        {"damp_percent": choices.damping, "true_sequential": choices.true_sequential},
    )
    notes = list(done.notes)
    if done.went_on:
        what = f"{done.went_on} layers are of an interrupted conversion"
        notes.append(Note(tensor="*", what=what, why="their codes were finished, and are the same"))
    return Conversion(
        weight_bytes,
        NATIVE.label,
        libraries=("torch", "transformers"),
        notes=notes,
        details={
            "compute_dtype": arithmetic.name,
            "calibration_tokens_used": int(calibration.ids.size),
            "column_loop": column_maker(),
            "loss": done.losses,
        },
        computed=done.computed,
        work=(done.parts.folder,),
    )


def check_text(calibration: Calibration) -> None:
    """Errors: BadInput where the windows hold too few tokens, or one token again and again."""
    ids, source = calibration.ids, calibration.record.source
    if ids.size < FEWEST_TOKENS:
        raise BadInput(
            f"calibration {source}: {ids.size} tokens say too little of what enters each layer; use at least "
            f"{FEWEST_TOKENS} (--calibration-tokens), better 32768"
        )
    if len(np.unique(ids)) < 2:
        raise BadInput(
            f"calibration {source}: its tokens are all the same one ({int(ids.flat[0])}); give another text"
        )


def write_packed(
    checkpoint: Checkpoint, format: PackedFormat, done: Quantized, stage: Path, run: RunOptions
) -> int:
    """The weights' files, packed from the finished parts; the bytes of tensor data."""
    with held_folder(run.scratch or stage, ".quantwright-engine-") as scratch, Spool(scratch) as spool:
        for name, linear in done.linears.items():
            for tensor, array in format.pack(linear, done.codes(name)).items():
                spool.add(tensor, array, format.stored_type(tensor))
        for name, values in done.changed.items():
            info = checkpoint.tensors[name]
            raw = torch_bytes(values).view(f"<u{values.element_size()}").reshape(info.shape)
            spool.add(name, raw, info.dtype)
        for name, array in format.extras(checkpoint).items():
            spool.add(name, array)
        replaced = done.sources | done.changed.keys()
        for name, info in checkpoint.tensors.items():
            if name not in replaced and info.dtype in FLOATS:
                done.computed.add(name, checkpoint.read_float32(name))
        return spool.write(checkpoint, frozenset(replaced), stage)
