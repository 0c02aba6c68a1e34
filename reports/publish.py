"""A Hub repository of verified artifacts: put together, written to a folder, uploaded."""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantize.artifact.artifact import DROPPINGS, MANIFEST, Artifact, read_manifest, why_not_ours
from quantize.artifact.attestation import verified_here
from quantize.errors import BadInput
from quantize.into_place import put_in_place
from quantize.staging import claim, staging
from quantize.terminal import printable
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
from reports.hub import Commit, Existing, check_existing, public_manifests, with_kept_sections
from reports.load import load
from reports.naming import as_converted, before_naming, named, own_name
from reports.plots import PLOTS, size_plot
from reports.rows import Group

Say = Callable[[str], None]
#: Creative Commons' word for it: cc-by-nd-4.0, cc-by-nc-nd-4.0
NO_DERIVATIVES = re.compile(r"(^|[-,])nd([-,]|$)", re.IGNORECASE)


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class Repository:
    """``files``: path in the repository -> a file on disk, or the bytes themselves; ``commits``: the same in
    one commit an artifact, the card with the last."""

    repo: str
    files: dict[str, Path | bytes]
    recipes: tuple[str, ...]
    commits: tuple[Commit, ...] = ()


def prepare(
    folders: Sequence[Path],
    runs: Sequence[Path],
    options: CardOptions,
    *,
    allow_unverified: bool = False,
    allow_no_derivatives: bool = False,
    existing: Existing | None = None,
    add: bool = False,
    say: Say = _silent,
) -> Repository:
    """Check everything, hashes too, before a byte is written or sent. ``existing``: what the repository holds
    already; ``add``: whatever that is.

    Errors: BadInput where the repository's name is bad, an artifact is not verified or does not match its
    hashes, the artifacts do not go into one repository or into that one, or the licence forbids what they
    are.
    """
    check_repo_id(options.repo)
    artifacts = [Artifact.load(folder) for folder in folders]
    _check(artifacts, allow_unverified)
    own = None
    if options.name is not None or any(artifact.gguf for artifact in artifacts):
        source = artifacts[0].manifest.source
        own = own_name(source.name, source.hub_id, base_model_of(artifacts, options), options.name)
    terms = terms_of(artifacts, options)
    if NO_DERIVATIVES.search(terms.license or "") and not allow_no_derivatives:
        raise BadInput(
            f"publish: the licence ({printable(terms.license, 80)}) forbids derivatives, which quantized "
            "weights are; pass --allow-no-derivatives if its owner allows it"
        )
    if existing is not None and not (add and not existing.artifacts):
        check_existing(options.repo, existing, artifacts)
    groups = compare(load(list(runs))).groups if runs else ()
    for artifact in artifacts:
        artifact.check_files()
        if artifact.verified != "none" and not verified_here(artifact):
            say(
                f"{artifact.folder}: verified ({artifact.verified}) "
                "as claimed by the artifact's maker; not checked here"
            )
    artifacts = [named(artifact, own) for artifact in artifacts]
    kept = public_manifests(existing, artifacts)
    every = [*artifacts, *kept.values()]
    files, belongs, commits = _layout(artifacts, kept, options)
    group = _measured(groups, every)
    if not runs:
        say("no --results: the model card will show no measured numbers")
    else:
        known = {row.subject.digest for row in group.rows} if group else set()
        for artifact in artifacts:
            digest = as_converted(artifact).digest
            if digest not in known:
                say(
                    f"{artifact.folder}: {', '.join(map(str, runs))} has "
                    f"no numbers for it (digest {digest[:12]})"
                )
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
    plot, drawn = size_plot(group) if group else ("", b"")
    if plot:
        commits[-1].add[plot] = files[plot] = drawn
    card = str(model_card(every, belongs, options, group, plot))
    if existing is not None:
        card = with_kept_sections(card, existing.card, options.repo)
        commits = _without_what_went(commits, existing, kept)
    commits[-1].add["README.md"] = files["README.md"] = card.encode()
    return Repository(options.repo, files, tuple(a.manifest.recipe_short for a in artifacts), tuple(commits))


def _without_what_went(commits: list[Commit], existing: Existing, kept: dict[str, Artifact]) -> list[Commit]:
    """The last one also deletes what the artifacts that are replaced had brought, and manifests that
    moved."""
    now = {name for commit in commits for name in commit.add}
    stays = {name for artifact in kept.values() for name in artifact.manifest.files}
    went = set(existing.artifacts) | {
        name
        for path, artifact in existing.artifacts.items()
        if path not in kept
        for name in artifact.manifest.files
    }
    deleted = sorted((went - now - stays - (set(kept) - _moved(kept, now))) & existing.files)
    return [*commits[:-1], replace(commits[-1], delete=tuple(deleted))]


def _moved(kept: dict[str, Artifact], now: set[str]) -> set[str]:
    """manifest.json of an artifact that was alone and is not any more."""
    return {path for path in kept if path == MANIFEST and f"manifests/{_slug(kept[path])}.json" in now}


def _slug(artifact: Artifact) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in artifact.manifest.recipe_short)


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
    artifacts: Sequence[Artifact], kept: dict[str, Artifact], options: CardOptions
) -> tuple[dict[str, Path | bytes], dict[str, tuple[Artifact, str]], list[Commit]]:
    """Where each file goes, which file of which artifact it is, and one commit for each artifact. One alone
    keeps its layout; GGUF files of several lie side by side under distinct names, their manifests in
    ``manifests/``. ``kept``: those that are in the repository already."""
    files: dict[str, Path | bytes] = {}
    belongs: dict[str, tuple[Artifact, str]] = {}
    commits = []
    alone = len(artifacts) + len(kept) == 1
    taken = {name: artifact for artifact in kept.values() for name in artifact.manifest.files}
    for artifact in artifacts:
        slug, before = _slug(artifact), set(files)
        for name, entry in artifact.manifest.files.items():
            path = artifact.folder / before_naming(artifact, name)
            target = name
            other = files.get(target)
            there = taken[name].manifest.files[name].sha256 if name in taken else None
            same = isinstance(other, Path) and other.read_bytes() == path.read_bytes()
            if same or there == entry.sha256:
                continue
            if other is not None or there is not None:
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
        new = {name: content for name, content in files.items() if name not in before}
        commits.append(Commit(f"Quantized by Quantwright: {artifact.manifest.recipe_short}", new))
    for manifest, artifact in kept.items():
        belongs |= {name: (artifact, name) for name in artifact.manifest.files if name not in belongs}
        if manifest == MANIFEST:  # of one that was alone
            text = artifact.manifest.model_dump_json(indent=2) + "\n"
            commits[-1].add[f"manifests/{_slug(artifact)}.json"] = text.encode()
    return files, belongs, commits


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
        return why_not_ours(folder, besides=("README.md", *PLOTS))
    expected = {"README.md", "manifests", *PLOTS, *DROPPINGS, *(path.stem for path in manifests)}
    for path in manifests:
        try:
            expected |= {name.partition("/")[0] for name in read_manifest(path).files}
        except BadInput:
            return f"holds manifests/{path.name}, which this program did not write"
    others = sorted(
        path.name for path in folder.iterdir() if path.name not in expected and path.suffix != ".gguf"
    )
    return f"holds {others[0]} beside the repository, which --force would delete" if others else ""
