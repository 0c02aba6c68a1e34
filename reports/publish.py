"""A Hub repository of verified artifacts: put together, written to a folder, uploaded."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantize.artifact.artifact import DROPPINGS, MANIFEST, Artifact, read_manifest, why_not_ours
from quantize.artifact.attestation import verified_here
from quantize.errors import BadInput, StepFailed
from quantize.into_place import put_in_place
from quantize.staging import claim, staging
from quantize.units import spell_size
from reports.card import (
    CardOptions,
    base_model_of,
    check_repo_id,
    model_card,
    published,
    source_name,
    terms_of,
)
from reports.compare import compare
from reports.load import load
from reports.rows import Group

Say = Callable[[str], None]


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class Repository:
    """``files``: path in the repository -> a file on disk, or the bytes themselves."""

    repo: str
    files: dict[str, Path | bytes]
    recipes: tuple[str, ...]


def prepare(
    folders: Sequence[Path],
    runs: Sequence[Path],
    options: CardOptions,
    *,
    allow_unverified: bool = False,
    say: Say = _silent,
) -> Repository:
    """Check everything, hashes too, before a byte is written or sent.

    Errors: BadInput where the repository's name is bad, an artifact is not verified or does not match its
    hashes, or the artifacts do not go into one repository.
    """
    check_repo_id(options.repo)
    artifacts = [Artifact.load(folder) for folder in folders]
    _check(artifacts, allow_unverified)
    groups = compare(load(list(runs))).groups if runs else ()
    for artifact in artifacts:
        artifact.check_files()
        if artifact.verified != "none" and not verified_here(artifact):
            say(
                f"{artifact.folder}: verified ({artifact.verified}) "
                "as claimed by the artifact's maker; not checked here"
            )
    files, belongs = _layout(artifacts, options)
    group = _measured(groups, artifacts)
    if not runs:
        say("no --results: the model card will show no measured numbers")
    else:
        known = {row.subject.digest for row in group.rows} if group else set()
        for artifact in artifacts:
            if artifact.digest not in known:
                say(
                    f"{artifact.folder}: {', '.join(map(str, runs))} has "
                    f"no numbers for it (digest {artifact.digest[:12]})"
                )
    terms = terms_of(artifacts, options)
    if terms.license is None:
        say("the source names no licence, so the card has none: give --license")
    elif terms.missing:
        say(
            f"the licence is `other` and the source's card has no {terms.missing}: give "
            f"--{terms.missing.replace('_', '-')}"
        )
    if base_model_of(artifacts, options) is None:
        say(
            "the source is a local folder, so the card names no base "
            "model: give --base-model org/name if it is on the Hub"
        )
    card = model_card(artifacts, belongs, options, group)
    files["README.md"] = str(card).encode()
    return Repository(options.repo, files, tuple(a.manifest.recipe_short for a in artifacts))


def _check(artifacts: Sequence[Artifact], allow_unverified: bool) -> None:
    for artifact in artifacts:
        verification = artifact.manifest.verification
        if not verification.passed:
            failed = next(check.name for check in verification.checks if not check.passed)
            raise BadInput(f"{artifact.folder}: its verification failed ({failed}); it is not published")
        if verification.level == "none" and not allow_unverified:
            raise BadInput(
                f"{artifact.folder}: was not verified; convert again without "
                "--verify none, or pass --allow-unverified (the card says so)"
            )
    sources = {artifact.manifest.source.digest for artifact in artifacts}
    if len(sources) > 1:
        names = ", ".join(sorted({artifact.manifest.source.id for artifact in artifacts}))
        raise BadInput(
            f"publish: the artifacts come from different sources ({names}); one repository holds one model"
        )
    folders = [artifact for artifact in artifacts if artifact.gguf is None]
    if folders and len(artifacts) > 1:
        raise BadInput(
            f"publish: {folders[0].folder} is a Hugging Face folder, which needs its "
            "own repository; publish it alone (several GGUF files can share one)"
        )
    recipes = [artifact.manifest.recipe_digest for artifact in artifacts]
    if len(set(recipes)) < len(recipes):
        raise BadInput("publish: the same recipe is listed twice")


def _layout(
    artifacts: Sequence[Artifact], options: CardOptions
) -> tuple[dict[str, Path | bytes], dict[str, tuple[Artifact, str]]]:
    """Where each file goes, and which file of which artifact it is. One artifact keeps its layout; GGUF files
    of several lie side by side under distinct names, their manifests in ``manifests/``."""
    files: dict[str, Path | bytes] = {}
    belongs: dict[str, tuple[Artifact, str]] = {}
    alone = len(artifacts) == 1
    for artifact in artifacts:
        recipe = artifact.manifest.recipe_short
        slug = "".join(c if c.isalnum() or c in "-_." else "-" for c in recipe)
        for name in artifact.manifest.files:
            path = artifact.folder / name
            target = name
            if target in files:
                other = files[target]
                if isinstance(other, Path) and other.read_bytes() == path.read_bytes():
                    continue
                target = (
                    f"{Path(name).stem}-{slug}{Path(name).suffix}"
                    if name.endswith(".gguf")
                    else f"{slug}/{name}"
                )
            files[target] = path
            belongs[target] = (artifact, name)
        files[MANIFEST if alone else f"manifests/{slug}.json"] = _public_manifest(
            artifact, artifacts, options
        )
    return files, belongs


def _public_manifest(artifact: Artifact, artifacts: Sequence[Artifact], options: CardOptions) -> bytes:
    """The manifest, with paths of this machine taken out."""
    m = artifact.manifest
    name = source_name(artifacts, base_model_of(artifacts, options))
    changes: dict[str, object] = {"source": m.source.model_copy(update={"id": name})}
    if (
        m.calibration is not None
        and os.path.sep in m.calibration.source
        and Path(m.calibration.source).exists()
    ):
        changes["calibration"] = m.calibration.model_copy(update={"source": Path(m.calibration.source).name})
    run = {
        key: value for key, value in m.run.items() if not (isinstance(value, str) and os.path.isabs(value))
    }
    return (m.model_copy(update={**changes, "run": run}).model_dump_json(indent=2) + "\n").encode()


def _measured(groups: Sequence[Group], artifacts: Sequence[Artifact]) -> Group | None:
    return next((found for group in groups if (found := published(group, artifacts)) is not None), None)


def write_repository(
    repository: Repository, out: Path, force: bool = False, inputs: Sequence[Path] = ()
) -> None:
    """Write every file as it would be uploaded; whole or not at all. ``force`` replaces a folder that this
    wrote.

    Errors: BadInput where ``out`` exists, unless ``force``, or is or holds one of ``inputs``, what it is made
    of; StepFailed where the disk is full.
    """
    read = [*inputs, *(content for content in repository.files.values() if isinstance(content, Path))]
    out = claim(out, force, read, _why_not_ours)
    with staging(out) as stage:
        for name, content in repository.files.items():
            target = stage / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            else:
                shutil.copyfile(content, target)
        put_in_place(stage, out, force)


def _why_not_ours(folder: Path) -> str:
    """Where several artifacts share a repository, their manifests lie in a folder of it."""
    manifests = sorted((folder / "manifests").glob("*.json"))
    if not manifests:
        return why_not_ours(folder, besides=("README.md",))
    expected = {"README.md", "manifests", *DROPPINGS, *(path.stem for path in manifests)}
    for path in manifests:
        try:
            expected |= {name.partition("/")[0] for name in read_manifest(path).files}
        except BadInput:
            return f"holds manifests/{path.name}, which this program did not write"
    others = sorted(
        path.name for path in folder.iterdir() if path.name not in expected and path.suffix != ".gguf"
    )
    return f"holds {others[0]} beside the repository, which --force would delete" if others else ""


def upload(
    repository: Repository,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    say: Say = _silent,
) -> str:
    """One commit with everything; the repository is created where it does not exist. Returns its address.

    Errors: BadInput where the Hub refuses the card; StepFailed where it cannot be reached or refuses the
    token.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    card = repository.files["README.md"]
    assert isinstance(card, bytes)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="quantwright")
    try:
        try:  # before the repository is created, not after
            ModelCard(card.decode()).validate()
        except ValueError as error:
            raise BadInput(
                f"{repository.repo}: the Hub refuses the model card: {_yaml_errors(str(error))}"
            ) from None
        url = api.create_repo(repository.repo, private=private or None, exist_ok=True)
        total = sum(len(c) if isinstance(c, bytes) else c.stat().st_size for c in repository.files.values())
        say(f"uploading {len(repository.files)} files, {spell_size(total)}, to {url}")
        operations = [
            CommitOperationAdd(name, str(c) if isinstance(c, Path) else c)
            for name, c in sorted(repository.files.items())
        ]
        title = message or f"Quantized by Quantwright: {', '.join(repository.recipes)}"
        api.create_commit(repository.repo, operations, commit_message=title, revision=revision)
    except OfflineModeIsEnabled:
        raise StepFailed(
            f"{repository.repo}: HF_HUB_OFFLINE is set, so "
            "nothing can be uploaded; unset it, or use --dry-run"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        reason = {
            401: "the token is missing or wrong (set HF_TOKEN)",
            403: "the token has no write access there",
        }.get(status)
        words = reason or " ".join(str(error).split())[:300]
        raise StepFailed(f"{repository.repo}: the Hub refused the upload: {words}") from error
    except Exception as error:
        # huggingface_hub lets through what its HTTP library raises, and which library that is differs by
        # version.
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "requests", "httpcore"):
            raise
        raise StepFailed(
            f"{repository.repo}: the Hub cannot be reached ({type(error).__name__}); nothing was published"
        ) from error
    return str(url)


def _yaml_errors(answer: str) -> str:
    """The messages in what the Hub's validation answers, on one line."""
    try:
        return "; ".join(error["message"] for error in json.loads(answer)["errors"])
    except (ValueError, KeyError, TypeError):
        return " ".join(answer.split())
