"""The in-toto statement of an artifact that was made again: what follows from which source, how, and what was
compared. Source: in-toto attestation framework, Statement v1."""

from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantize.artifact.artifact import Manifest, Sha256
from quantize.attesting.outcome import Outcome
from quantize.checkpoint.checkpoint import Checkpoint, content_digest
from quantize.errors import BadInput
from quantize.hashes import sha256_files
from quantize.terminal import printable

TYPE = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:quantwright:made-again:v1"


class Digest(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    sha256: Sha256


class Subject(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str = Field(min_length=1, max_length=1024)
    digest: Digest


class Statement(BaseModel):
    """What is read of one; other members are kept out, as in-toto asks of a reader."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[Subject, ...] = Field(min_length=1, max_length=100_000)
    predicate_type: Literal["urn:quantwright:made-again:v1"] = Field(alias="predicateType")
    predicate: dict[str, Any]


def statement(
    outcome: Outcome,
    checkpoint: Checkpoint,
    manifest: Manifest | None,
    engine: str,
    libraries: dict[str, str],
) -> dict[str, Any]:
    """``checkpoint``: the source as it was given, its files hashed here. ``manifest``: of an artifact of
    ours. No path of this machine goes in."""
    contents = checkpoint.contents()
    hashes = sha256_files({path for _, path in contents})
    source: dict[str, Any] = {
        "name": printable(checkpoint.source if checkpoint.revision else checkpoint.name, 300),
        "revision": checkpoint.revision,
        "digest": content_digest(contents, hashes),
        "files": [{"name": name, "digest": {"sha256": hashes[path]}} for name, path in contents],
    }
    predicate: dict[str, Any] = {
        "source": source,
        "recipe": outcome.recipe,
        "tool": {"name": "quantwright", "version": metadata.version("quantwright")},
        "engine": engine,
        "libraries": libraries,
        "compared": {
            "everyByteOf": sorted(outcome.whole),
            "tensors": outcome.tensors,
            "blocks": outcome.blocks,
            "metadataThatDiffers": [each.document() for each in outcome.metadata],
        },
    }
    if manifest is not None:
        predicate["recipeDigest"] = manifest.recipe_digest
        if manifest.calibration is not None:
            calibration = manifest.calibration.model_dump(mode="json")
            predicate["calibration"] = calibration | {"source": _name(calibration["source"])}
            for part in predicate["calibration"]["parts"]:
                part["source"] = _name(part["source"])
        if manifest.adapter is not None:
            predicate["adapter"] = manifest.adapter.model_dump(mode="json")
    return {
        "_type": TYPE,
        "subject": [{"name": n, "digest": {"sha256": h}} for n, h in sorted(outcome.files.items())],
        "predicateType": PREDICATE,
        "predicate": predicate,
    }


def _name(place: str) -> str:
    """A text without the folder that it lies in."""
    return Path(place).name if Path(place).is_absolute() or Path(place).exists() else place


def read_statement(values: dict[str, Any], where: Path) -> Statement:
    """Errors: BadInput where it is not a statement of this kind."""
    kind = values.get("predicateType")
    if values.get("_type") == TYPE and kind != PREDICATE:
        raise BadInput(f"{where}: attests {printable(repr(kind), 200)}; expected {PREDICATE}")
    try:
        return Statement.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = printable(".".join(map(str, first["loc"])), 100)
        raise BadInput(f"{where}: not an in-toto statement v1: {place}: {first['msg']}") from None
