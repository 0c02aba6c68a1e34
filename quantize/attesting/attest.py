"""From an artifact and its source to a statement that the one follows from the other: make it again, compare,
say so."""

from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from quantize.artifact.artifact import MANIFEST, Artifact, Manifest
from quantize.artifact.of_path import find_artifact
from quantize.attesting import folders, gguf
from quantize.attesting.outcome import Outcome
from quantize.attesting.statement import statement
from quantize.calibration.windows import Calibration, load_calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.conversion import convert
from quantize.engines.ggml import GGML
from quantize.engines.native.precision import arithmetic_of
from quantize.errors import BadInput, Unsupported
from quantize.files import typed_path
from quantize.gguf.container.files import find_gguf
from quantize.methods.base import Work
from quantize.methods.gguf import GgufWork
from quantize.methods.registry import parse_recipe, plan, require
from quantize.recipe import CalibrationOptions, Recipe, RunOptions
from quantize.sources.adapter import adapter_record
from quantize.sources.hub import resolve_model
from quantize.sources.merged import merge_adapter
from quantize.sources.opening import open_checkpoint
from quantize.staging import temporary_folder
from quantize.terminal import printable

#: engines of others whose bytes are not the same twice
NOT_REPEATED = ("gptqmodel",)


@dataclass(frozen=True)
class Given:
    """What a person says beside artifact and source: files that a manifest names by their hashes alone."""

    imatrix: Path | None = None
    calibration: str | None = None
    adapter: Path | None = None


@dataclass(frozen=True)
class Attested:
    outcome: Outcome
    document: dict[str, Any]  # the statement


def artifact_of(path: Path) -> Artifact | None:
    """The artifact of ours in ``path``, a folder or its only GGUF file; None for a file of anybody's.

    Errors: BadInput where it is neither."""
    if (artifact := find_artifact(path)) is not None:
        return artifact
    if find_gguf(path) is None:
        raise BadInput(
            f"{path}: neither an artifact of quantwright (no {MANIFEST}) nor a GGUF file; only of these a "
            "recipe can be read"
        )
    return None


def attest(path: Path, source: str, given: Given, run: RunOptions) -> Attested:
    """Errors: BadInput, Unsupported where it cannot be made again (which file is missing, which engine does
    not repeat itself); StepFailed where work fails. What differs is in the outcome."""
    artifact = artifact_of(path)
    opened = open_checkpoint(source, trust_remote_code=run.trust_remote_code, scratch=run.scratch)
    if artifact is None:
        file = find_gguf(path)
        assert file is not None
        outcome = gguf.strangers(file, opened, given.imatrix, run)
        libraries = _versions(("numpy", *GGML.libraries))
        return Attested(outcome, statement(outcome, opened, None, GGML.label, libraries))
    manifest = artifact.manifest
    _check_repeats(manifest, path)
    recipe = _recipe(manifest, given)
    as_named = _as_named(opened, manifest)
    merged = _merged(as_named, manifest, given, run)
    work = plan(merged, recipe)
    options, text = _calibration(work, manifest, given, run)
    remarks = _remarks(manifest, opened)
    here = arithmetic_of(run, opened).name  # of an importance matrix
    if isinstance(work, GgufWork):
        outcome = gguf.ours(artifact.folder, manifest, work, run, text)
    else:
        with temporary_folder("attest", run.scratch) as scratch:
            made = convert(
                as_named,
                recipe,
                scratch / "made",
                calibration=options,
                run=run,
                verify="none",
                adapter=given.adapter,
            )
            outcome = folders.compared(artifact.folder, manifest, made, work)
            here = _computed_in(made.manifest)
    there = _computed_in(manifest)
    if there and there != here:
        remarks.append(f"calibrated in {printable(there, 80)}, here in {here}")
    outcome.remarks += remarks
    engine = require(recipe).engine.label
    return Attested(outcome, statement(outcome, opened, manifest, engine, _versions(manifest.libraries)))


def _check_repeats(manifest: Manifest, path: Path) -> None:
    name = manifest.engine.partition(" ")[0].lower()
    if name in NOT_REPEATED:
        raise Unsupported(
            f"{path}: was made by {printable(manifest.engine, 100)}, whose bytes are not the same twice: "
            "making it again proves nothing; convert with this program's own engine (engine=native)"
        )


def _recipe(manifest: Manifest, given: Given) -> Recipe:
    """Errors: BadInput where an importance matrix is missing or is another."""
    values = dict(manifest.recipe)
    wanted = values.get("imatrix_sha256")
    if wanted:
        if given.imatrix is None:
            raise BadInput(
                f"the recipe uses the importance matrix {printable(values.get('imatrix'), 200)} "
                f"(sha256 {wanted[:12]}...); give that file with --imatrix"
            )
        values["imatrix"] = str(given.imatrix)
    elif given.imatrix is not None:
        raise BadInput(f"--imatrix {given.imatrix}: the artifact's recipe uses no such file; leave it out")
    return parse_recipe(values)


def _as_named(checkpoint: Checkpoint, manifest: Manifest) -> Checkpoint:
    """The source by the name that the maker had for it, which goes into a GGUF file's metadata."""
    return replace(checkpoint, source=manifest.source.id, revision=manifest.source.revision)


def _merged(checkpoint: Checkpoint, manifest: Manifest, given: Given, run: RunOptions) -> Checkpoint:
    """Errors: BadInput where the adapter is missing or another."""
    if manifest.adapter is None:
        if given.adapter is not None:
            raise BadInput(f"--adapter {given.adapter}: the artifact was made without one; leave it out")
        return checkpoint
    name = printable(manifest.adapter.name, 200)
    if given.adapter is None:
        raise BadInput(f"the LoRA {name} was merged into the source; give its folder with --adapter")
    if adapter_record(given.adapter).sha256 != manifest.adapter.sha256:
        raise BadInput(f"--adapter {given.adapter}: not the LoRA that was merged ({name}); give that one")
    return merge_adapter(checkpoint, given.adapter, run.scratch)


def _calibration(
    work: Work[Any], manifest: Manifest, given: Given, run: RunOptions
) -> tuple[CalibrationOptions | None, Calibration | None]:
    """Errors: BadInput where the tokens are not those that the manifest names."""
    record = manifest.calibration
    if record is None or not work.recipe.calibrated:
        return None, None
    source = given.calibration or record.source
    options = CalibrationOptions(
        source=source, tokens=record.tokens, sequence_length=record.sequence_length, seed=record.seed
    )
    text = load_calibration(work.checkpoint, options, run)
    if text.record.ids_sha256 != record.ids_sha256:
        raise BadInput(
            f"calibration {printable(source, 200)}: gives other tokens than the artifact was calibrated with "
            f"(sha256 of their ids {text.record.ids_sha256[:12]}..., there {record.ids_sha256[:12]}...); "
            "give the same text with --calibration"
        )
    return options, text


def _remarks(manifest: Manifest, opened: Checkpoint) -> list[str]:
    """What may explain a difference: another source, other versions."""
    out = []
    if manifest.adapter is None and opened.digest != manifest.source.digest:
        out.append(
            f"{opened.source}: is not the source that the manifest names (content sha256 "
            f"{opened.digest[:12]}..., there {manifest.source.digest[:12]}...)"
        )
    here = {**_versions(manifest.libraries), "quantwright": metadata.version("quantwright")}
    there = {**manifest.libraries, "quantwright": manifest.tool.get("version", "")}
    for name, version in here.items():
        if version != there[name]:
            out.append(f"made with {name} {printable(there[name], 40)}, here it is {version or 'absent'}")
    return out


def _computed_in(manifest: Manifest) -> str:
    """What the model ran in over the calibration text, where it did."""
    own = manifest.details.get("imatrix")
    return str(manifest.details.get("compute_dtype") or (own or {}).get("compute_dtype") or "")


def _versions(names: Any) -> dict[str, str]:
    out = {}
    for name in names:
        try:
            out[str(name)] = metadata.version(str(name))
        except (metadata.PackageNotFoundError, ValueError):
            out[str(name)] = ""
    return out


def local(path: str) -> Path:
    """What a person typed, fetched where it is on the Hub."""
    typed = typed_path(path)
    return typed if typed.exists() else resolve_model(path)[0]
