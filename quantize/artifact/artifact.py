"""A committed conversion: a folder and its ``manifest.json``.

The manifest is written last and the folder renamed into place when complete, so what has a manifest under its
final name is whole. Besides the manifest a folder holds only what a rerun reproduces byte for byte; the
manifest holds no times.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from quantize.errors import BadInput
from quantize.files import inside, parse_json, plain_name, read_bytes
from quantize.hashes import sha256_file, sha256_files
from quantize.into_place import put_in_place
from quantize.staging import claim
from quantize.terminal import printable

MANIFEST = "manifest.json"
NOT_COMPARED = "not compared: "  # of a check of logits that could not be made
FORMAT_VERSION = 1
#: what systems leave in folders that people look into
DROPPINGS = (".DS_Store", "Thumbs.db", "desktop.ini")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Bytes = Annotated[int, Field(ge=0, le=2**60)]
Count = Annotated[int, Field(ge=0, le=2**60)]


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Note(Frozen):
    """A fallback that was taken: ``what`` was done to ``tensor`` (or ``*``) and ``why``."""

    tensor: str
    what: str
    why: str


def grouped(notes: Iterable[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """(tensor, what, why) of every note -> one for all tensors of which the same is said, layers by the star:
    ``model.layers.*.mlp.up_proj.weight (18)``."""
    together: dict[tuple[str, str], dict[str, list[str]]] = {}
    for tensor, what, why in notes:
        pattern = re.sub(r"\.\d+\.", ".*.", tensor)
        together.setdefault((what, why), {}).setdefault(pattern, []).append(tensor)
    return [
        (
            ", ".join(f"{p} ({len(names)})" if len(names) > 1 else names[0] for p, names in patterns.items()),
            what,
            why,
        )
        for (what, why), patterns in together.items()
    ]


class FileEntry(Frozen):
    sha256: Sha256
    size_bytes: Bytes


class Source(Frozen):
    id: str
    revision: str | None
    digest: str
    dtype: str
    architecture: str
    model_type: str
    parameters: Count
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    languages: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    remote_code: bool = False
    # the tensors that were quantized in the source already, by type: "12 of Q4_K, 2 of Q6_K"
    quantized: str = ""

    @property
    def hub_id(self) -> str | None:
        """``org/name`` of a source on the Hub, which has a revision; None for a folder, whose name may hold
        any character."""
        found = HUB_ID.match(self.id) if self.revision else None
        return found[0] if found else None

    @property
    def name(self) -> str:
        """Its last part, without a revision: used where no path of the maker's machine may appear."""
        return PurePath(self.id.partition("@")[0] if self.revision else self.id).name or "model"


def _file_name(name: str) -> str:
    try:
        return plain_name(name, MANIFEST)
    except BadInput as error:
        raise ValueError(str(error)) from None


FileName = Annotated[str, AfterValidator(_file_name)]


class AdapterRecord(Frozen):
    """A LoRA that was merged into the source: its folder's name, and sha256 over its config and weights."""

    name: str
    sha256: str


class CalibrationPart(Frozen):
    """One of several texts."""

    source: str
    tokens: Count  # its share
    sha256: str


class CalibrationRecord(Frozen):
    """``sha256``: of the text that was used; of the model's own samples, of their ids; of several texts, of
    their hashes in a row. ``parts``: where there are several."""

    source: str
    sha256: str
    ids_sha256: str
    tokens: Count
    sequence_length: Count
    seed: int
    parts: tuple[CalibrationPart, ...] = ()


class Check(Frozen):
    """One thing verified: ``value`` against ``tolerance`` where it is a number."""

    name: str
    passed: bool
    value: float | None = None
    tolerance: float | None = None
    detail: str = ""


class Verification(Frozen):
    level: Literal["full", "tensors", "none"]
    runtime: str = ""
    reader: str = ""
    checks: tuple[Check, ...] = ()

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def why_lower(self) -> str:
        """Why ``full`` was not reached, if it was asked for."""
        return next(
            (c.detail.removeprefix(NOT_COMPARED) for c in self.checks if c.detail.startswith(NOT_COMPARED)),
            "",
        )


def _with_method(recipe: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(recipe.get("method"), str):
        raise ValueError("names no method")
    return recipe


class Manifest(Frozen):
    format_version: int = Field(default=FORMAT_VERSION, ge=1, le=FORMAT_VERSION)
    recipe: Annotated[dict[str, Any], AfterValidator(_with_method)]
    recipe_short: str
    recipe_digest: str
    source: Source
    tool: dict[str, str]
    engine: str
    libraries: dict[str, str]
    calibration: CalibrationRecord | None = None
    adapter: AdapterRecord | None = None
    run: dict[str, Any] = Field(default_factory=dict)
    files: dict[FileName, FileEntry]
    weight_bytes: Bytes
    bits_per_weight: float = Field(ge=0, le=1e6, allow_inf_nan=False)
    notes: tuple[Note, ...] = ()
    details: dict[str, Any] = Field(default_factory=dict)
    runtime: str
    loads_in: tuple[str, ...]
    verification: Verification


def read_manifest(path: Path) -> Manifest:
    """Errors: BadInput where it is not an artifact, or of a later version."""
    try:
        return Manifest.model_validate(parse_json(read_bytes(path), str(path)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = printable(".".join(map(str, first["loc"])), 200)
        raise BadInput(
            f"{path}: malformed manifest: {where}: {printable(first['msg'], 300)}; convert again with --force"
        ) from None


class Artifact:
    """``folder`` and its parsed ``manifest``."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def load(cls, folder: Path | str) -> "Artifact":
        """Errors: BadInput where the folder has no manifest, or a malformed one, or lacks a file that it
        names."""
        folder = Path(folder)
        path = inside(folder, MANIFEST)
        if not path.is_file():
            raise BadInput(
                f"{folder}: no {MANIFEST}, so this is not an artifact "
                "of quantwright; make one with `quantwright convert`"
            )
        manifest = read_manifest(path)
        for name, entry in manifest.files.items():
            file = inside(folder, name)
            if not file.is_file() or file.stat().st_size != entry.size_bytes:
                state = (
                    f"has {file.stat().st_size} bytes instead of {entry.size_bytes}"
                    if file.is_file()
                    else "is missing"
                )
                raise BadInput(f"{folder}: {name} {state}; convert again with --force")
        return cls(folder, manifest)

    @property
    def digest(self) -> str:
        """sha256 over file names and hashes and the recipe: equal for equal content, wherever and whenever it
        was made."""
        content = {
            "recipe": self.manifest.recipe_digest,
            "files": {n: e.sha256 for n, e in sorted(self.manifest.files.items())},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.manifest.files.values())

    @property
    def bits_per_weight(self) -> float:
        return self.manifest.bits_per_weight

    @property
    def verified(self) -> str:
        """``full``, ``tensors`` or ``none``."""
        return self.manifest.verification.level

    @property
    def gguf(self) -> Path | None:
        """The (first) GGUF file, where the artifact is one."""
        return next(
            (self.folder / name for name in sorted(self.manifest.files) if name.endswith(".gguf")), None
        )

    def check_files(self, sha256: Callable[[Path], str] = sha256_file) -> None:
        """Hash every file. Errors: BadInput naming the first that does not match."""
        with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
            digests = pool.map(lambda name: sha256(self.folder / name), self.manifest.files)
            for (name, entry), digest in zip(self.manifest.files.items(), digests, strict=True):
                if digest != entry.sha256:
                    raise BadInput(
                        f"{self.folder}: {name} does not match its sha256: "
                        "it is damaged; convert again with --force"
                    )


def hash_files(folder: Path, known: Mapping[str, str] = MappingProxyType({})) -> dict[str, FileEntry]:
    """Of every file but the manifest; ``known``: name -> sha256 of those that need not be read again. The
    disk writes them meanwhile, so that ``commit`` has little left to wait for."""
    paths = {
        str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != MANIFEST
    }
    with ThreadPoolExecutor(1) as pool:
        flushed = [pool.submit(_flush, path) for path in paths.values()]
        digests = sha256_files(path for name, path in paths.items() if name not in known)
        for each in flushed:
            each.result()
    return {
        name: FileEntry(sha256=known.get(name) or digests[path], size_bytes=path.stat().st_size)
        for name, path in paths.items()
    }


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def claim_output(out: Path, force: bool, inputs: Iterable[Path] = ()) -> Path:
    """``staging.claim`` for an artifact: with ``force``, only another artifact or an empty folder is
    replaced."""
    return claim(out, force, inputs, why_not_ours)


def why_not_ours(folder: Path, besides: tuple[str, ...] = ()) -> str:
    """Why ``folder`` is not an artifact, or more than one: empty where it holds only the files of its
    manifest (and those named in ``besides``). A damaged manifest of ours vouches for the files around it."""
    entries = {path.name for path in folder.iterdir()} - {MANIFEST, *DROPPINGS, *besides}
    first = min(entries, default="nothing")
    try:
        raw = read_bytes(folder / MANIFEST)
    except BadInput:
        return f"holds {first} and no {MANIFEST}; --force replaces only an artifact"
    if b'"recipe_digest"' not in raw:
        return f"holds {first} and another program's {MANIFEST}; --force replaces only an artifact"
    try:
        named = {name.partition("/")[0] for name in Manifest.model_validate_json(raw).files}
    except ValidationError:
        named = {path.name for path in folder.iterdir() if not path.is_dir()}
    others = sorted(entries - named)
    return f"holds {others[0]} beside the artifact, which --force would delete" if others else ""


def commit(stage: Path, out: Path, manifest: Manifest, force: bool) -> Artifact:
    """Write the manifest into ``stage``, flush everything to disk, and put the folder at ``out``.

    Errors: BadInput where something lies there and ``force`` is not given; OSError.
    """
    (stage / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for path in stage.rglob("*"):
        if path.is_file():
            _flush(path)
    put_in_place(stage, out, force)
    return Artifact(out, manifest)
