"""From a checkpoint and a recipe to a committed, verified artifact. The story of every conversion, whatever
the method."""

import contextlib
import shutil
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantize.artifact.artifact import (
    AdapterRecord,
    Artifact,
    Note,
    Verification,
    claim_output,
    commit,
)
from quantize.artifact.attestation import attest
from quantize.calibration.sources import OWN, parse_sources
from quantize.calibration.windows import Calibration, load_calibration
from quantize.checkpoint.checkpoint import PROCESSOR_FILES, TOKENIZER_FILES, Checkpoint
from quantize.checkpoint.model_card import ModelCard, license_files, read_model_card
from quantize.disk_errors import disk_errors
from quantize.engines.base import Conversion
from quantize.engines.native.parts import discard
from quantize.errors import BadInput, QuantwrightError, StepFailed
from quantize.files import typed_path
from quantize.formats.packed import PackedFormat
from quantize.manifest_of import manifest_of
from quantize.methods.base import Work
from quantize.methods.registry import parse_recipe, require
from quantize.recipe import CalibrationOptions, Recipe, RunOptions
from quantize.sources.adapter import adapter_record
from quantize.sources.merged import merge_adapter
from quantize.sources.opening import open_checkpoint
from quantize.staging import staging
from quantize.verification.process import KeptProcess, Start, new_process
from quantize.verification.verify import verify

FAILED = "verification.json"  # in the place of a manifest
VERIFY_LEVELS = ("full", "tensors", "none")


def convert(
    model: str | Path | Checkpoint,
    to: str | dict[str, Any] | Recipe,
    out: str | Path,
    *,
    calibration: CalibrationOptions | None = None,
    run: RunOptions | None = None,
    verify: str = "full",
    force: bool = False,
    adapter: str | Path | None = None,
    keep_failed: bool = False,
    calibrating: Callable[[CalibrationOptions], None] = lambda options: None,
) -> Artifact:
    """Convert ``model`` by the recipe ``to`` into the new folder ``out``, verify it, commit it.

    ``verify``: ``full`` compares logits in the artifact's runtime with an independent reader's weights,
    ``tensors`` looks at types, weights and tokenizer without a forward pass, ``none`` skips both.
    ``adapter``: folder of a PEFT LoRA to merge into the model first.

    ``force`` replaces another artifact, or an empty folder, in one step; never an input or a folder that
    holds one.

    ``full`` reaches ``tensors`` where transformers does not have the source's architecture: the artifact's
    own level says so, and a note why. ``keep_failed``: what does not verify is kept beside ``out``, with
    ``verification.json`` instead of a manifest, under a name that ends in ``.failed``. ``calibrating`` is
    told before a calibration text is read, where one is.

    Errors: BadInput or Unsupported before any work, BadInput where another process was faster; StepFailed
    when work fails or the artifact does not verify. In every other case nothing is left under ``out``, nor
    beside it.
    """
    run = run or RunOptions()
    order = _order(model, to, Path(out), calibration, run, verify, force, adapter, keep_failed)
    text = _text(order, {}, calibrating) if order.calibrated else None
    _begin_digest(order)
    with staging(order.out) as stage:
        return _complete(order, stage, order.work.write(stage, run, text), text)


def convert_together(
    model: str | Path,
    wanted: Sequence[tuple[Recipe, Path]],
    *,
    calibration: CalibrationOptions | None = None,
    run: RunOptions,
    verify: str = "full",
    force: bool = False,
    adapter: str | Path | None = None,
    keep_failed: bool = False,
    calibrating: Callable[[CalibrationOptions], None] = lambda options: None,
) -> Iterator[tuple[Path, Artifact | QuantwrightError]]:
    """Convert ``model`` by several recipes, each with the folder it goes to, in one process: those whose
    works have an equal ``reading`` from one reading, and all on one calibration text. What became of each,
    with its folder, as soon as it is known: the artifact that ``convert`` would have made, committed, or the
    error.

    Errors: those before any work are raised.
    """
    checkpoint = open_checkpoint(model, trust_remote_code=run.trust_remote_code, scratch=run.scratch)
    orders = [
        _order(model, recipe, out, calibration, run, verify, force, adapter, keep_failed, checkpoint)
        for recipe, out in wanted
    ]
    readings: dict[Hashable, list[_Order]] = {}
    for order in orders:
        readings.setdefault(order.out if order.work.reading is None else order.work.reading, []).append(order)
    texts: dict[frozenset[str], Calibration] = {}
    with contextlib.closing(KeptProcess()) as kept:
        for together in readings.values():
            done: set[Path] = set()
            try:
                text = _text(together[0], texts, calibrating) if together[0].calibrated else None
                for order, result in _made_from_one_reading(together, text, kept):
                    done.add(order.out)
                    yield order.out, result
            except QuantwrightError as error:  # of the reading: nothing is known to be one recipe's fault
                yield from ((order.out, error) for order in together if order.out not in done)


def _text(
    order: "_Order",
    known: dict[frozenset[str], Calibration],
    calibrating: Callable[[CalibrationOptions], None],
) -> Calibration:
    """Of what is ``known``, by the tensors that an artifact holds; else loaded, and known then."""
    held = frozenset(order.work.checkpoint.tensors)
    if not known:
        calibrating(order.calibration)
    if held not in known:
        text = load_calibration(order.work.checkpoint, order.calibration, order.run)
        sampled = any(part.place == OWN for part in parse_sources(text.record.source))
        known[held] = replace(text, sampled_before=sampled)
        return text
    return known[held]


def _made_from_one_reading(
    orders: "Sequence[_Order]", text: Calibration | None, kept: Start
) -> "Iterator[tuple[_Order, Artifact | QuantwrightError]]":
    works, run = [order.work for order in orders], orders[0].run
    with contextlib.ExitStack() as stack:
        stages = [stack.enter_context(staging(order.out)) for order in orders]
        _begin_digest(orders[0])
        if len(works) > 1:
            written = works[0].write_together(works, stages, run)
        else:
            written = [works[0].write(stages[0], run, text)]
        for order, stage, conversion in zip(orders, stages, written, strict=True):
            try:
                with disk_errors(order.out):
                    if isinstance(conversion, Exception):
                        raise conversion
                    start = kept if isinstance(order.work.format, PackedFormat) else new_process
                    yield order, _complete(order, stage, conversion, text, start)
            except QuantwrightError as error:
                yield order, error


def _begin_digest(order: "_Order") -> None:
    """Where cores are left over: of what is only rounded, hashing the source takes as long as all else."""
    if order.run.resolved_threads > 1 and not order.calibrated:
        order.work.held.whole.begin_digest()


@dataclass(frozen=True)
class _Order:
    """One conversion that can be done: ``card`` is the model's, ``merged`` the adapter in it."""

    work: Work[Any]
    out: Path
    inputs: list[Path]
    calibration: CalibrationOptions
    card: ModelCard
    merged: AdapterRecord | None
    run: RunOptions
    verify: str
    force: bool
    keep_failed: bool

    @property
    def calibrated(self) -> bool:
        return self.work.calibrated


def _order(
    model: str | Path | Checkpoint,
    to: str | dict[str, Any] | Recipe,
    out: Path,
    calibration: CalibrationOptions | None,
    run: RunOptions,
    verify: str,
    force: bool,
    adapter: str | Path | None,
    keep_failed: bool,
    opened: Checkpoint | None = None,
) -> _Order:
    """``opened``: ``model``, where it is open already. Errors: BadInput, Unsupported."""
    if verify not in VERIFY_LEVELS:
        raise BadInput(f"verify {verify!r}: expected one of {', '.join(VERIFY_LEVELS)}")
    recipe = parse_recipe(to)
    method = require(recipe)
    calibration = calibration or CalibrationOptions()
    inputs = inputs_of(model, recipe, calibration, adapter)
    out = claim_output(out, force, inputs)
    checkpoint = (
        model
        if isinstance(model, Checkpoint)
        else opened or open_checkpoint(model, trust_remote_code=run.trust_remote_code, scratch=run.scratch)
    )
    inputs += inputs_of(checkpoint, recipe, calibration, adapter)
    card = read_model_card(checkpoint.folder)
    merged = None
    if adapter is not None:
        checkpoint, merged = merge_adapter(checkpoint, adapter, run.scratch), adapter_record(adapter)
    work = method.plan(checkpoint, recipe)
    return _Order(work, out, inputs, calibration, card, merged, run, verify, force, keep_failed)


def _complete(
    order: _Order,
    stage: Path,
    conversion: Conversion,
    text: Calibration | None,
    start: Start = new_process,
) -> Artifact:
    """What was written into ``stage``, verified and committed. ``text``: what it was calibrated with;
    ``start``: see ``verify``."""
    work, recipe, checkpoint, out = order.work, order.work.recipe, order.work.checkpoint, order.out
    conversion.notes += work.held.left_out
    if work.format.hf_folder:
        _copy_companions(checkpoint, stage)
    for path in license_files(checkpoint.folder):
        shutil.copyfile(path, stage / path.name)
    verification = _verify(work, stage, conversion, order.run, order.verify, start)
    if failure := failed_message(verification):
        kept = _keep(stage, out, verification) if order.keep_failed else None
        where = f"the output is kept in {kept}" if kept else "nothing was written (--keep-failed keeps it)"
        raise StepFailed(f"{checkpoint.source} to {recipe.short}: verification failed at {failure}; {where}")
    manifest = manifest_of(work, order.run, order.card, order.merged, stage, conversion, text, verification)
    if order.force:  # what lies there may have changed since
        claim_output(out, order.force, order.inputs)
    artifact = commit(stage, out, manifest, order.force)
    for folder in conversion.work:
        discard(folder)
    if verification.level != "none":
        attest(artifact)
    return artifact


def inputs_of(
    model: str | Path | Checkpoint,
    recipe: Recipe,
    calibration: CalibrationOptions,
    adapter: str | Path | None,
) -> list[Path]:
    """What a conversion reads, as it was typed: an output that is or holds one of these replaces nothing."""
    if isinstance(model, Checkpoint):
        read = [model.folder, *(path for _, path in model.contents())]
    else:
        read = [typed_path(model)]
    given = (adapter, *recipe.files)
    texts = (part.path() for part in parse_sources(calibration.source))
    return read + [typed_path(each) for each in given if each] + [path for path in texts if path]


def _copy_companions(checkpoint: Checkpoint, stage: Path) -> None:
    """Tokenizer, template, processor and generation config are the source's own files, whatever the engine
    wrote."""
    for name in (*TOKENIZER_FILES, *PROCESSOR_FILES):
        (stage / name).unlink(missing_ok=True)
    for path in checkpoint.companion_files:
        shutil.copyfile(path, stage / path.name)


def _verify(
    work: Work[Any], stage: Path, conversion: Conversion, run: RunOptions, level: str, start: Start
) -> Verification:
    if level == "none":
        return Verification(level="none")

    verification = verify(work, stage, conversion, run, level, start)
    if verification.level != level and verification.passed:
        what = f"verification reaches only {verification.level!r}"
        conversion.notes.append(Note(tensor="*", what=what, why=verification.why_lower))
    return verification


def failed_message(verification: Verification) -> str:
    """Which check failed first, and why; nothing where all passed."""
    first = next((check for check in verification.checks if not check.passed), None)
    if first is None:
        return ""
    numbers = (
        f" ({first.value:.3g}, tolerance {first.tolerance:.3g})"
        if first.value is not None and first.tolerance
        else ""
    )
    return f"{first.name}{numbers}" + (f": {first.detail}" if first.detail else "")


def _keep(stage: Path, out: Path, verification: Verification) -> Path:
    """Move what was made out of ``stage``, to a folder that no one takes for an artifact."""
    names = (f"{out.name}{number}.failed" for number in ("", *(f"-{count}" for count in range(2, 1000))))
    kept = next(path for name in names if not (path := out.absolute().parent / name).exists())
    kept.mkdir()
    for path in stage.iterdir():
        path.rename(kept / path.name)
    (kept / FAILED).write_text(verification.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return kept
