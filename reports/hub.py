"""A repository on the Hub: what is there already, and putting artifacts beside it or in its place."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.artifact.artifact import Artifact, Manifest, read_manifest
from quantize.checkpoint.model_card import CARD, LICENSE_FILE
from quantize.errors import BadInput, StepFailed
from quantize.files import plain_name, read_text
from quantize.terminal import printable
from quantize.units import MIB, spell_size

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Say = Callable[[str], None]
MANIFESTS = re.compile(r"manifest\.json|manifests/[^/]+\.json")
MAX_CARD_BYTES = 16 * MIB
#: what an empty repository may hold
_OF_THE_HUB = (".gitattributes", CARD)
_KEPT = re.compile(r"<!-- keep -->.*?<!-- /keep -->", re.DOTALL)
_HEADING = re.compile(r"^#{1,2} .+$", re.MULTILINE)


@dataclass(frozen=True)
class Existing:
    """``artifacts``: path of its manifest -> what this program published there; ``files``: of all."""

    commit: str
    files: frozenset[str] = frozenset()
    card: str = ""
    artifacts: dict[str, Artifact] = field(default_factory=dict)


@dataclass(frozen=True)
class Commit:
    """``add``: path in the repository -> a file on disk, or the bytes themselves."""

    title: str
    add: dict[str, Path | bytes]
    delete: tuple[str, ...] = ()


def read_existing(repo: str, revision: str | None = None) -> Existing | None:
    """None where there is no such repository. A branch that is not there yet begins as main is.

    Errors: StepFailed where the Hub cannot be reached or refuses the token.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    with upload_errors(repo):
        api = _api()
        try:
            try:
                info = api.model_info(repo, revision=revision)
            except RevisionNotFoundError:
                info = api.model_info(repo)
        except RepositoryNotFoundError:
            return None
        commit = str(info.sha)
        files = frozenset(plain_name(each.rfilename, repo) for each in info.siblings or [])

        def fetch(name: str) -> Path:
            return Path(hf_hub_download(repo, name, revision=commit, endpoint=os.environ.get("HF_ENDPOINT")))

        card = read_text(fetch(CARD), MAX_CARD_BYTES) if CARD in files else ""
        artifacts = {}
        for name in sorted(files):
            if MANIFESTS.fullmatch(name) and (manifest := _ours(fetch(name))):
                artifacts[name] = Artifact(Path(repo), manifest)
    return Existing(commit, files, card, artifacts)


def _ours(path: Path) -> Manifest | None:
    try:
        return read_manifest(path)
    except BadInput:
        return None


def check_existing(repo: str, existing: Existing, artifacts: Sequence[Artifact]) -> None:
    """Errors: BadInput where ``repo`` holds something that these artifacts do not belong beside."""
    strange = sorted(
        name for name in existing.files if name not in _OF_THE_HUB and not LICENSE_FILE.fullmatch(name)
    )
    if not existing.artifacts:
        if strange:
            raise BadInput(
                f"{repo}: holds {printable(strange[0], 100)}, which this program did not publish; choose "
                "another --repo, or pass --add to put the files beside it"
            )
        return
    new = artifacts[0].manifest
    for there in existing.artifacts.values():
        old = there.manifest
        if old.source.digest != new.source.digest:
            raise BadInput(
                f"{repo}: holds {printable(old.recipe_short, 80)} of another source "
                f"({printable(old.source.id, 100)}); choose another --repo"
            )
        if old.recipe_digest != new.recipe_digest and None in (there.gguf, artifacts[0].gguf):
            raise BadInput(
                f"{repo}: holds {printable(old.recipe_short, 80)}, and a Hugging Face folder needs a "
                "repository of its own; choose another --repo"
            )


def with_kept_sections(card: str, before: str, repo: str) -> str:
    """``card`` with what a person wrote between ``<!-- keep -->`` and ``<!-- /keep -->`` in the card
    ``before``, each at the end of the section in which it stood, else at the end.

    Errors: BadInput where a marker has no partner.
    """
    if before.count("<!-- keep -->") != before.count("<!-- /keep -->"):
        raise BadInput(
            f"{repo}: its card has <!-- keep --> without <!-- /keep -->, or the other way round; mend it"
        )
    headings = [(found.start(), found[0].strip()) for found in _HEADING.finditer(_without_kept(before))]
    for found in _KEPT.finditer(before):
        above = [title for at, title in headings if at < found.start()]
        card = _insert(card, found[0], above[-1] if above else "")
    return card


def _without_kept(text: str) -> str:
    """As long as before, so that places stay."""
    return _KEPT.sub(lambda found: " " * len(found[0]), text)


def _insert(card: str, block: str, heading: str) -> str:
    plain = _without_kept(card)
    own = [found for found in _HEADING.finditer(plain) if found[0].strip() == heading]
    after = _HEADING.search(plain, own[0].end()) if own else None
    at = after.start() if after else len(card)
    return f"{card[:at].rstrip()}\n\n{block}\n\n{card[at:]}".rstrip() + "\n"


def upload(
    repo: str,
    commits: Sequence[Commit],
    *,
    existing: Existing | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    collection: str | None = None,
    say: Say = lambda _: None,
) -> str:
    """One commit after the other, each on the one before; the repository and the branch are created where
    they do not exist. Returns the repository's address. What an earlier try had sent is not sent again.

    Errors: BadInput where the Hub refuses the card, or the repository changed meanwhile; StepFailed where it
    cannot be reached or refuses the token.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, ModelCard

    card = next((each.add[CARD] for each in commits if CARD in each.add), b"")
    assert isinstance(card, bytes)
    with upload_errors(repo):
        api = _api()
        try:  # before the repository is created, not after
            ModelCard(card.decode()).validate()
        except ValueError as error:
            raise BadInput(f"{repo}: the Hub refuses the model card: {_yaml_errors(str(error))}") from None
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        if revision and revision != "main":
            api.create_branch(repo, branch=revision, exist_ok=True)
        parent = existing.commit if existing else None
        for number, commit in enumerate(commits, 1):
            size = sum(len(c) if isinstance(c, bytes) else c.stat().st_size for c in commit.add.values())
            which = f" ({number} of {len(commits)})" if len(commits) > 1 else ""
            say(f"uploading {len(commit.add)} files, {spell_size(size)}, to {url}{which}")
            operations: list[Any] = [
                CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
                for name, content in sorted(commit.add.items())
            ]
            operations += [CommitOperationDelete(name) for name in commit.delete]
            done = api.create_commit(
                repo,
                operations,
                commit_message=message or commit.title,
                revision=revision,
                parent_commit=parent,
            )
            parent = done.oid
        if collection:
            _collect(api, repo, collection, private)
    return str(url)


def _collect(api: "HfApi", repo: str, title: str, private: bool) -> None:
    namespace = repo.partition("/")[0]
    made = api.create_collection(title, namespace=namespace, private=private, exists_ok=True)
    api.add_collection_item(made.slug, item_id=repo, item_type="model", exists_ok=True)


def _api() -> "HfApi":
    """Its bars are drawn where a person looks."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="quantwright")


@contextmanager
def upload_errors(repo: str) -> Iterator[None]:
    """What huggingface_hub raises -> BadInput and StepFailed with what to do."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled:
        raise StepFailed(
            f"{repo}: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it, or use --dry-run"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (409, 412):
            raise BadInput(
                f"{repo}: somebody else changed it meanwhile; run again, what was sent is not sent twice"
            ) from None
        reason = {
            401: "the token is missing or wrong (set HF_TOKEN)",
            403: "the token has no write access there",
            429: "too many requests; wait, and run again",
        }.get(status)
        words = reason or " ".join(str(error).split())[:300]
        raise StepFailed(f"{repo}: the Hub refused the upload: {words}") from error
    except Exception as error:
        # huggingface_hub lets through what its HTTP library raises, and which library that is differs by
        # version; a transfer that broke off is a RuntimeError of its own.
        if _of_xet(error):
            refused = re.search(r"\(([1-5]\d\d [A-Za-z ]+)\)", str(error))  # its address may hold a secret
            raise StepFailed(
                f"{repo}: the Hub's Xet storage did not take the files "
                f"({refused[1] if refused else type(error).__name__}); run again, what was sent is not sent "
                "twice, or set HF_HUB_DISABLE_XET=1 to send them another way"
            ) from error
        if not _of_transfer(error):
            raise
        raise StepFailed(
            f"{repo}: the Hub cannot be reached ({type(error).__name__}); run again, what was sent is not "
            "sent twice"
        ) from error


def _of_xet(error: Exception) -> bool:
    """hf_xet raises errors of its own and Python's."""
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__ == "hf_xet"


def _of_transfer(error: BaseException | None) -> bool:
    while error is not None:
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "requests", "httpcore"):
            return True
        error = error.__cause__
    return False


def _yaml_errors(answer: str) -> str:
    """The messages in what the Hub's validation answers, on one line."""
    try:
        return "; ".join(error["message"] for error in json.loads(answer)["errors"])
    except (ValueError, KeyError, TypeError):
        return " ".join(answer.split())


def public_manifests(existing: Existing | None, artifacts: Sequence[Artifact]) -> dict[str, Artifact]:
    """Of ``existing``, those that stay: not made by one of the recipes that are published now."""
    new = {artifact.manifest.recipe_digest for artifact in artifacts}
    there = existing.artifacts if existing else {}
    return {name: a for name, a in there.items() if a.manifest.recipe_digest not in new}
