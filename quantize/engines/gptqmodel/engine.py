"""Driving GPTQModel, the engine behind the GPTQ and AWQ methods: calibration windows in, a checkpoint in
their formats out.

What the engine does by itself is undone or reported here: it rounds to nearest where calibration fails
(switched off, and a Hessian that cannot be factored stops the conversion), raises damping (noted), writes
random paths and times into its output (the files are written again from its tensors and the source's own
config), and rewrites tokenizer files (not used).
"""

import contextlib
import errno
import gc
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.library_folder import library_folder
from quantize.checkpoint.materialised import materialised
from quantize.engines.base import Computed
from quantize.engines.gptqmodel.awq_search import awq_search
from quantize.engines.gptqmodel.computed import add_unquantized, packed_weights
from quantize.engines.gptqmodel.contained import contained
from quantize.engines.gptqmodel.installed import GPTQMODEL
from quantize.errors import QuantwrightError, StepFailed, first_line
from quantize.hf.extensions import ensure_kernel_environment, keep_hub_caches
from quantize.progress import Advance, progress_bar
from quantize.quiet import quiet
from quantize.recipe import RunOptions
from quantize.staging import held_folder

if TYPE_CHECKING:
    import torch

#: windows that go through a layer at once: large enough that Python's share of the time is small
BATCH_ROWS = 4
#: models with more weights are loaded and packed layer by layer, through a scratch folder
OFFLOAD_ABOVE_PARAMETERS = 1_500_000_000
#: loss that the engine reports for a layer that it rounded to nearest because its Hessian was unusable
ROUNDED_LOSS = 999999999


@dataclass
class EngineRun:
    """What came out: ``folder`` with the engine's own files, its log (one row a layer's linear), its
    quantization config."""

    folder: Path
    log: list[dict[str, Any]]
    config: dict[str, Any]
    notes: list[Note] = field(default_factory=list)
    computed: Computed | None = None


def compute_dtype(run: RunOptions) -> str:
    """float32 on a CPU, where it is exact and, without bfloat16 instructions, ten times as fast; bfloat16 on
    an accelerator."""
    if run.dtype != "auto":
        return run.dtype
    return "float32" if run.resolved_device == "cpu" else "bfloat16"


@contextlib.contextmanager
def scratch_folder(stage: Path, run: RunOptions) -> Iterator[Path]:
    """A folder for the engine's files, under ``run.scratch`` or the staging folder, removed afterwards."""
    with held_folder(run.scratch or stage, ".quantwright-engine-") as folder:
        yield folder


def quantize(
    checkpoint: Checkpoint,
    make_config: Callable[[dict[str, Any]], Any],
    rows: np.ndarray,
    scratch: Path,
    run: RunOptions,
    *,
    backend: str = "AUTO",
    title: str = "quantizing",
) -> EngineRun:
    """Quantize the source in memory with ``rows`` (n, length) of token ids, save it under ``scratch``.

    ``make_config`` gets the settings that every method shares and returns the engine's config.

    Errors: StepFailed where a weight is not finite, a Hessian cannot be factored, no calibration token
    reached a layer, or the engine fails for another reason.
    """
    checkpoint.check_finite()
    _environment(run)
    stderr = sys.stderr

    trust = checkpoint.trust_remote_code
    with (
        materialised(checkpoint, scratch) as folder,
        library_folder(folder, trust, source=checkpoint.source, scratch=scratch, always=True) as source,
        quiet(),
        _failures_named(checkpoint),
        contained(checkpoint.model_type),
    ):
        import torch
        from gptqmodel import BACKEND, GPTQModel
        from gptqmodel.quantization.config import Fallback

        if run.threads:
            torch.set_num_threads(run.threads)
        torch.manual_seed(0)
        offload = checkpoint.parameters > OFFLOAD_ABOVE_PARAMETERS
        config = make_config(
            {
                "fallback": Fallback(threshold=1e-9),  # to nearest, where no token at all came by
                "offload_to_disk": offload,
                "offload_to_disk_path": str(scratch / "offload") if offload else None,
            }
        )
        model = GPTQModel.load(
            str(source),
            config,
            device=run.resolved_device,
            dtype=getattr(torch, compute_dtype(run)),
            trust_remote_code=trust,
        )
        layers = int(checkpoint.config.get("num_hidden_layers") or 0)
        samples = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows.tolist()]
        with (
            _surviving_workers(),
            _watched_hessians() as floors,
            awq_search() as unreached,
            packed_weights() as computed,
            progress_bar(title, layers, "layers", run.progress, stderr) as advance,
        ):
            model.layer_callback = _each_layer_once(advance)
            log = model.quantize(samples, batch_size=BATCH_ROWS, backend=BACKEND[backend])
        add_unquantized(computed, model.model, checkpoint)
        flat = [row for entries in log.values() for row in entries] if isinstance(log, dict) else list(log)
        notes = [*_damping_notes(flat, config, floors), *_unreached_notes(flat, unreached, checkpoint)]
        folder = scratch / "saved"
        model.save(str(folder))
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
        del model
        gc.collect()
    return EngineRun(folder, flat, saved, notes, computed)


def _environment(run: RunOptions) -> None:
    """Must run before the engine is imported: it reads these once."""

    ensure_kernel_environment()
    keep_hub_caches()
    # fewer than its file readers: it fails
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, run.resolved_threads)))
    os.environ.setdefault("LOGBAR_ANIMATION", "0")


@contextlib.contextmanager
def _failures_named(checkpoint: Checkpoint) -> Iterator[None]:
    """The engine's exceptions, whatever their class, as one line that names the layer where it was."""
    try:
        yield
    except QuantwrightError:
        raise
    except OSError:
        raise
    except Exception as error:
        text = str(error).strip()
        if "os error 28" in text:  # safetensors' own exception for a full disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        silent = type(error) is Exception and not text  # where no scale of AWQ's gave a finite loss
        why = "no scale gave a finite loss" if silent else first_line(error)
        layer = _layer_at(error)
        where = f" at layer {layer}" if layer is not None else ""
        raise StepFailed(f"{checkpoint.source}: {GPTQMODEL.label} failed{where}: {why}") from error


def _layer_at(error: BaseException) -> int | None:
    """The innermost ``layer_index`` among the local variables of the traceback: the engine's messages seldom
    name the layer."""
    found = None
    trace = error.__traceback__
    while trace is not None:
        values = trace.tb_frame.f_locals
        index = values.get("layer_index", getattr(values.get("module"), "layer_index", None))
        found = index if isinstance(index, int) else found
        trace = trace.tb_next
    return found


@contextlib.contextmanager
def _surviving_workers() -> Iterator[None]:
    """Raise what a worker thread of the engine raised. By itself the engine prints a traceback and ends the
    whole process at once, without our message, and leaves the staging folder behind."""
    from gptqmodel.utils.threadx import _DeviceWorker

    failures: list[BaseException] = []
    original = _DeviceWorker._abort_process

    def keep(self: Any, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        # its task is never answered: waiting for it would not end
        if any(frame.name == "_run_warmup" for frame in frames):
            original(self, error)
        failures.append(error)

    _DeviceWorker._abort_process = keep
    try:
        yield
    except Exception as error:
        if failures and error is not failures[0]:  # what went wrong first, not what followed from it
            raise failures[0] from error
        raise
    finally:
        _DeviceWorker._abort_process = original
    if failures:
        raise failures[0]


@contextlib.contextmanager
def _watched_hessians() -> Iterator[list[tuple[str, float]]]:
    """Stop at a Hessian that cannot be factored; collect (layer, amount) where the engine added to its
    diagonal to factor it.

    By itself the engine goes on and rounds such a layer to nearest.
    """
    import torch
    from gptqmodel.quantization.gptq import GPTQ

    floors: list[tuple[str, float]] = []
    original = GPTQ.hessian_inverse
    guard = threading.Lock()

    def hessian_inverse(self: Any, hessian: "torch.Tensor") -> Any:
        before = hessian.diagonal().clone()
        if not bool(torch.isfinite(before).all()):
            raise StepFailed(
                f"{_name_of(self)}: its inputs overflow on the calibration text (the Hessian "
                "holds NaN or Inf); check the model's weights, or compute in float32"
            )
        result = original(self, hessian)
        if result[0] is None:
            raise StepFailed(
                f"{_name_of(self)}: its Hessian is not positive definite even with damping up to 1; "
                "use more --calibration-tokens or a larger damp_percent"
            )
        added = float((hessian.diagonal() - before).max())
        if added > 0:
            with guard:
                floors.append((_name_of(self), added))
        return result

    GPTQ.hessian_inverse = hessian_inverse
    try:
        yield floors
    finally:
        GPTQ.hessian_inverse = original


def _name_of(worker: Any) -> str:
    named = getattr(worker, "_named_module", None)
    return str(getattr(named, "full_name", None) or getattr(worker, "name", "a layer"))


def _each_layer_once(advance: Advance) -> Callable[..., None]:
    """For GPTQModel, which tells of a layer several times."""
    finished: set[int] = set()

    def layer_complete(*, layer_idx: int, submodule_finalized: bool) -> None:
        if layer_idx not in finished:
            finished.add(layer_idx)
            advance(1)

    return layer_complete


def _damping_notes(log: list[dict[str, Any]], config: Any, floors: list[tuple[str, float]]) -> list[Note]:
    """Notes of every layer whose Hessian needed help. Errors: StepFailed where one that saw tokens was
    rounded to nearest."""
    notes = []
    wanted = getattr(config, "damp_percent", None)
    for row in log:
        name = f"layer {row['layer']} {row['module']}"
        loss = str(row.get("loss", ""))
        if _saw_nothing(row):
            continue
        if "fallback" in loss or loss.startswith(str(ROUNDED_LOSS)):
            raise StepFailed(
                f"{name}: its loss is NaN, so it could only be "
                "rounded to nearest; use more --calibration-tokens"
            )
        damp = row.get("damp")
        if wanted is not None and damp is not None and abs(float(damp) - wanted) > 1e-5:
            notes.append(
                Note(
                    tensor=name,
                    what=f"damping raised from {wanted:g} to {float(damp):g}",
                    why="its Hessian was not positive definite on the calibration text",
                )
            )
    for name, amount in floors:
        notes.append(
            Note(
                tensor=name,
                what=f"{amount:.2e} added to its Hessian's diagonal (also for linears with the same input)",
                why="the Hessian was not positive definite on the calibration text",
            )
        )
    return sorted(notes, key=lambda note: (note.tensor, note.what))


def _saw_nothing(row: dict[str, Any]) -> bool:
    return str(row.get("samples", "1")) == "0" and "fallback" in str(row.get("loss", ""))


def _unreached_notes(log: list[dict[str, Any]], unscaled: set[str], checkpoint: Checkpoint) -> list[Note]:
    """Experts, mostly, that no calibration token chose. More text seldom helps: they are rounded to
    nearest."""
    names = unscaled | {f"layers.{row['layer']}.{row['module']}" for row in log if _saw_nothing(row)}
    what = "rounded to nearest, without calibration"
    why = "no calibration token reached it" + (
        ", or another expert that would share its scales" if unscaled else ""
    )
    found = (
        tensor for tensor in checkpoint.tensors if any(tensor.endswith(f"{name}.weight") for name in names)
    )
    return [Note(tensor=tensor, what=what, why=why) for tensor in sorted(found)]
