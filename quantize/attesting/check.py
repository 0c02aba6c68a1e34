"""Whether an attestation is of these files, and who signed it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.artifact.artifact import DROPPINGS, MANIFEST
from quantize.attesting.bundle import SUFFIX, is_bundle, verified
from quantize.attesting.envelope import read_envelope, read_public_key, signer
from quantize.attesting.folders import BESIDE
from quantize.attesting.statement import read_statement
from quantize.checkpoint.model_card import license_files
from quantize.errors import BadInput, StepFailed
from quantize.files import plain_name
from quantize.hashes import sha256_files
from quantize.terminal import printable

#: in a published repository, beside the files that a program opens
PUBLISHED = ("manifests", "size-quality.png", "size-quality.svg")


@dataclass(frozen=True)
class Checked:
    """``signed_by``: id of the key that was given and fits, or the identity of a bundle, which ``issuer``
    vouches for; "" where none was given. ``signed``: whether there is a signature at all."""

    files: tuple[str, ...]
    predicate: dict[str, Any]
    signed: bool
    signed_by: str
    beside: tuple[str, ...]
    issuer: str = ""


def check(
    attestation: Path,
    artifact: Path,
    public_key: Path | None,
    identity: str | None = None,
    issuer: str | None = None,
) -> Checked:
    """Errors: BadInput where the attestation cannot be read, or there is nothing to check; StepFailed where
    the signature is not by that key or identity, or the files are not those that were attested."""
    values, envelope = read_envelope(attestation)
    signed_by, bundled = "", is_bundle(values)
    if bundled and public_key is not None:
        raise BadInput(
            f"--public-key {public_key}: {attestation} is a sigstore bundle, signed by an identity; give "
            "--identity and --issuer in its place"
        )
    if bundled:
        values = verified(values, attestation, identity, issuer)
        signed_by = str(identity)
    elif identity is not None or issuer is not None:
        raise BadInput(
            f"{'--issuer' if identity is None else '--identity'}: {attestation} is not a sigstore bundle; "
            "leave it out, or check with --public-key"
        )
    if public_key is not None:
        key = read_public_key(public_key)
        if envelope is None:
            raise StepFailed(f"{attestation}: is not signed; the key {public_key} proves nothing of it")
        found = signer(envelope, key)
        if found is None:
            raise StepFailed(
                f"{attestation}: its signature is not by the key in {public_key}, or it was changed"
            )
        signed_by = found
    statement = read_statement(values, attestation)
    subjects = {each.name: each.digest.sha256 for each in statement.subject}
    beside: tuple[str, ...] = ()
    if artifact.is_file():
        files = _one_file(artifact, subjects, attestation)
    elif artifact.is_dir():
        files, beside = _folder(artifact, subjects, attestation)
    else:
        raise BadInput(f"{artifact}: no such file or folder; give the artifact that was attested")
    signed = bundled or envelope is not None
    vouched = str(issuer) if bundled else ""
    return Checked(files, statement.predicate, signed, signed_by, beside, vouched)


def _one_file(artifact: Path, subjects: dict[str, str], attestation: Path) -> tuple[str, ...]:
    """By its hash alone: whoever fetched it may call it something else."""
    (sha256,) = sha256_files([artifact]).values()
    names = [name for name, known in subjects.items() if known == sha256]
    if not names:
        raise StepFailed(
            f"{attestation}: is for other bytes: {artifact} (sha256 {sha256[:12]}...) is none of its "
            f"{len(subjects)} files"
        )
    return (names[0],)


def _by_hash(paths: dict[str, Path], subjects: dict[str, str], artifact: Path) -> None:
    """Files that are not there by their names are taken by their hashes: publishing renames some."""
    missing = {subjects[name]: name for name, path in paths.items() if not path.is_file()}
    others = [each for each in artifact.iterdir() if each.is_file() and each not in paths.values()]
    for path, sha256 in sha256_files(others).items() if missing else ():
        if sha256 in missing:
            paths[missing[sha256]] = path


def _folder(
    artifact: Path, subjects: dict[str, str], attestation: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Every file of the statement is there; what lies beside them is nothing that a program opens."""
    paths = {name: artifact / plain_name(name, str(attestation)) for name in subjects}
    _by_hash(paths, subjects, artifact)
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        raise StepFailed(
            f"{attestation}: is for other bytes: {artifact} lacks {printable(missing[0], 200)}"
            f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}"
        )
    hashes = sha256_files(paths.values())
    for name, path in paths.items():
        if hashes[path] != subjects[name]:
            raise StepFailed(
                f"{attestation}: is for other bytes: {artifact / name} has sha256 {hashes[path][:12]}..., "
                f"attested is {subjects[name][:12]}..."
            )
    attested = {path.resolve() for path in paths.values()} | {attestation.resolve()}
    harmless = {*BESIDE, *PUBLISHED, *DROPPINGS, MANIFEST, *(path.name for path in license_files(artifact))}
    beside = sorted(
        path.name
        for path in artifact.iterdir()
        if path.name not in {name.partition("/")[0] for name in subjects} and path.resolve() not in attested
    )
    unknown = [
        name for name in beside if name not in harmless and not name.endswith((".intoto.json", SUFFIX))
    ]
    if unknown:
        raise StepFailed(
            f"{artifact}: holds {printable(unknown[0], 200)}, which {attestation} does not cover; remove it, "
            "or check the files one by one"
        )
    return tuple(subjects), tuple(beside)
