"""What a manifest says of a conversion that was verified."""

from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from quantize.artifact.artifact import AdapterRecord, Manifest, Note, Source, Verification, hash_files
from quantize.calibration.windows import Calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.library_folder import ADVICE, names_code
from quantize.checkpoint.model_card import CARD, ModelCard
from quantize.engines.base import Conversion
from quantize.methods.base import Work
from quantize.methods.registry import require
from quantize.recipe import RunOptions
from quantize.terminal import printable


def manifest_of(
    work: Work[Any],
    run: RunOptions,
    card: ModelCard,
    merged: AdapterRecord | None,
    stage: Path,
    conversion: Conversion,
    calibration: Calibration | None,
    verification: Verification,
) -> Manifest:
    """``card``: the source's. ``merged``: the adapter in it. ``stage``: where the files lie."""
    recipe, checkpoint, whole = work.recipe, work.checkpoint, work.held.whole
    device = run.resolved_device if require(recipe).engine.on_device else "cpu"
    parameters = checkpoint.parameters
    # of a conversion that little more than copies, hashing is the longest part
    with ThreadPoolExecutor(1) as pool:
        source_digest = pool.submit(lambda: whole.digest)
        files = hash_files(stage, conversion.sha256)
    libraries = {name: metadata.version(name) for name in sorted({"numpy", *conversion.libraries})}
    shared = list(conversion.shared)
    if calibration and calibration.sampled_before:
        shared.insert(0, "samples of the model itself: drawn by an earlier conversion")
    return Manifest(
        recipe=recipe.canonical,
        recipe_short=recipe.short,
        recipe_digest=recipe.digest,
        source=Source(
            id=checkpoint.source,
            revision=checkpoint.revision,
            digest=source_digest.result(),
            dtype=checkpoint.dtype,
            architecture=checkpoint.architecture,
            model_type=checkpoint.model_type,
            parameters=parameters,
            license=card.license,
            license_name=card.license_name,
            license_link=card.license_link,
            languages=card.languages,
            tags=card.tags,
            remote_code=checkpoint.trust_remote_code,
            quantized=checkpoint.quantized,
        ),
        tool={"name": "quantwright", "version": metadata.version("quantwright")},
        engine=conversion.engine,
        libraries=libraries,
        calibration=calibration.record if calibration else None,
        adapter=merged,
        run={"device": device, "threads": run.resolved_threads},
        files=files,
        weight_bytes=conversion.weight_bytes,
        bits_per_weight=8 * conversion.weight_bytes / parameters,
        notes=(
            *conversion.notes,
            *(calibration.notes if calibration else ()),
            *(Note(tensor=CARD, what=what, why=why) for what, why in card.remarks),
            *_left_alone(checkpoint),
            *_rounded_before(checkpoint.quantized),
        ),
        details=conversion.details | ({"shared": shared} if shared else {}),
        runtime=work.format.runtime,
        loads_in=conversion.loads_in or work.format.loads_in,
        verification=verification,
    )


def _rounded_before(quantized: str) -> list[Note]:
    """``quantized``: the tensors of a source that was quantized before, "12 of Q4_K"."""
    why = (
        "the source is quantized already, and its rounding "
        "stays; convert the original checkpoint if there is one"
    )
    return (
        [Note(tensor="*", what=f"rounded before this conversion: {quantized}", why=why)] if quantized else []
    )


def _left_alone(checkpoint: Checkpoint) -> list[Note]:
    """A note for every file of tensors beside the model's own, and for what names code, where it is not
    trusted."""
    code = (
        []
        if checkpoint.trust_remote_code
        else [what for what in names_code(checkpoint.folder) if ": " in what]
    )
    read = ", ".join(checkpoint.weight_files[:3])
    return [
        Note(tensor="*", what=f"not used: {printable(name, 200)}", why=f"the model's weights are in {read}")
        for name in checkpoint.left_alone
    ] + [Note(tensor="*", what=f"not used: {printable(what, 200)}", why=ADVICE) for what in code]
