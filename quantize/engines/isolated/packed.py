"""Packed weights by an engine in an environment of its own: its codes, our files.

Nothing tells what the engine held in memory, so the second reader's weights are held against the source's,
and the runtime's logits against these weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.library_folder import library_folder
from quantize.checkpoint.materialised import materialised
from quantize.checkpoint.placed import PlacedFolder
from quantize.checkpoint.tensors import Entry, torch_bytes
from quantize.dtypes import FLOATS, TORCH, to_float32
from quantize.engines.base import Conversion
from quantize.engines.isolated.call import Response, call
from quantize.engines.isolated.environment import check_gpu, needed
from quantize.engines.isolated.known import isolated_engine
from quantize.engines.native.packed import write_configs
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.formats.packed import PackedFormat, stored_tensors
from quantize.recipe import RunOptions
from quantize.staging import held_folder

#: what of an engine's GPTQ follows from the shapes
INDEX = "g_idx"


def check_isolated(name: str, checkpoint: Checkpoint, format: PackedFormat, short: str) -> None:
    """Errors: Unsupported where the engine is not installed, or the model has matrices that are no linear
    layer by themselves, which such engines leave out or name in their own ways."""
    if format.storage == "gptq" and not format.symmetric:
        raise Unsupported(
            f"{short}: {name} writes zero points that this format cannot express; leave sym=true, "
            "or use engine=native"
        )
    engine = isolated_engine(name)
    check_gpu(engine, short)
    for linear in format.linears:
        if linear.module != "Linear" or linear.source != f"{linear.name}.weight":
            raise Unsupported(
                f"{checkpoint.source}: {linear.source} is not the weight of one linear layer, and {name} "
                "takes no others; use engine=native"
            )
    needed(engine, short)


def write_isolated(
    name: str,
    checkpoint: Checkpoint,
    format: PackedFormat,
    stage: Path,
    run: RunOptions,
    rows: np.ndarray | None,
    settings: dict[str, Any],
    short: str,
) -> Conversion:
    """Have the engine ``name`` quantize the checkpoint; its tensors go into ``stage`` under the source's
    config. ``rows`` (n, length): token ids that it calibrates with; ``settings``: of the recipe, in the
    engine's words.

    Errors: as ``call``; StepFailed where a tensor is missing, or not of the format.
    """
    checkpoint.check_finite()
    environment = needed(isolated_engine(name), short)
    kept = [*format.left(), *format.beside()]
    with _scratch(stage, run) as scratch, _safe(checkpoint, scratch) as source:
        made = scratch / "made"
        made.mkdir()
        request = {
            "task": "quantize",
            "model": str(source),
            "stage": str(made),
            "device": run.resolved_device,
            "calibration": rows.tolist() if rows is not None else [],
            "settings": {
                "bits": format.bits,
                "group_size": format.group_size,
                "sym": format.symmetric,
                "keep": kept,
                "format": format.storage,
                **settings,
            },
        }
        response = call(environment, scratch, request, run)
        size, rounded = _take(checkpoint, format, made, stage, environment.engine.label)
    write_configs(checkpoint, format, stage)
    return Conversion(
        size,
        environment.engine.label,
        libraries=("numpy",),
        notes=[*response.notes, *rounded],
        details=_details(response, environment.engine.sha256, rows),
    )


def _details(response: Response, lock: str, rows: np.ndarray | None) -> dict[str, Any]:
    told = {"versions": response.versions, "timings_s": response.timings_s, "lock_sha256": lock}
    used = {} if rows is None else {"calibration_tokens_used": int(rows.size)}
    return {**response.details, **used, "environment": told}


@contextmanager
def _scratch(stage: Path, run: RunOptions) -> Iterator[Path]:
    with held_folder(run.scratch or stage, ".quantwright-engine-") as folder:
        yield folder.absolute()


@contextmanager
def _safe(checkpoint: Checkpoint, scratch: Path) -> Iterator[Path]:
    """The checkpoint as a folder from which nothing is executed."""
    with (
        materialised(checkpoint, scratch) as folder,
        library_folder(folder, False, source=checkpoint.source, scratch=scratch, always=True) as safe,
    ):
        yield safe.absolute()


def _take(
    checkpoint: Checkpoint, format: PackedFormat, made: Path, stage: Path, label: str
) -> tuple[int, list[Note]]:
    """The engine's tensors into ``stage``, one in memory at a time; bytes of tensor data, and a note for each
    that the artifact's type rounds."""
    try:
        stored = stored_tensors(made)
    except BadInput as error:
        raise StepFailed(f"{label}: wrote nothing that can be read: {error}") from None
    groups = {f"{linear.name}.{INDEX}": (linear.inputs, format.groups(linear)) for linear in format.linears}
    entries = [Entry(*each) for linear in format.linears for each in format.matrix_entries(linear)]
    entries += [
        Entry(name, info.dtype, info.shape)
        for name, info in checkpoint.tensors.items()
        if name not in format.by_source
    ]
    notes: list[Note] = []
    with PlacedFolder(stage, sorted(entries, key=lambda entry: entry.name)) as folder:
        for entry in entries:
            if entry.name in stored.tensors:
                values, note = _as(stored, entry, label)
                folder.put(entry.name, values)
                notes += note
            elif entry.name in groups:
                inputs, count = groups[entry.name]
                folder.put(entry.name, (np.arange(inputs) // (inputs // count)).astype(np.int32))
            else:
                raise StepFailed(f"{label}: did not write {entry.name}")
        return folder.total_bytes, notes


def _as(stored: Checkpoint, entry: Entry, label: str) -> tuple[np.ndarray, list[Note]]:
    """A tensor as the artifact holds it: floats of another type are stored in that of ``entry``, with a note
    where that rounds them."""
    info = stored.tensors[entry.name]
    if tuple(info.shape) != tuple(entry.shape) or (
        info.dtype != entry.dtype and not (info.dtype in FLOATS and entry.dtype in FLOATS)
    ):
        raise StepFailed(
            f"{label}: wrote {entry.name} as {info.dtype} {list(info.shape)}; "
            f"expected {entry.dtype} {list(entry.shape)}"
        )
    array = stored.read(entry.name)
    if info.dtype == entry.dtype:
        return array, []
    import torch

    given = torch.from_numpy(to_float32(array, info.dtype))
    values = given.to(getattr(torch, TORCH[entry.dtype]))
    what = f"rounded from the engine's {info.dtype} to {entry.dtype}"
    same = bool(torch.equal(values.float(), given))
    return torch_bytes(values), [] if same else [
        Note(tensor=entry.name, what=what, why="the artifact keeps the type of the source")
    ]
