"""Files that go between the run folder and nodes that do not see it: by their sha256, through a bucket
(``--store``).

A file is uploaded once, whoever needs it, and hashed where it arrives. The bucket is a means of transport:
what counts is what the driver has committed in the run folder, and everything in the bucket may be deleted
between two runs.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jobs.bucket import Bucket, BucketError
from quantize.artifact.artifact import MANIFEST, Artifact, commit
from quantize.errors import BadInput
from quantize.files import plain_name, read_json
from quantize.hashes import sha256_file, sha256_files
from quantize.into_place import put_file, put_unless_there
from quantize.results import results_path


def push(bucket: Bucket, folder: Path, digests: Mapping[str, str]) -> None:
    """``digests``: file in ``folder`` -> sha256. What the bucket holds already does not go again. Errors:
    BucketError."""
    for name, digest in digests.items():
        path = folder / name
        if bucket.size_bytes(_object(digest)) != path.stat().st_size:
            bucket.put(path, _object(digest))


def pull(
    bucket: Bucket, digests: Mapping[str, str], folder: Path, wanted: Callable[[], bool] = lambda: True
) -> None:
    """The reverse; ``wanted`` is asked before each file. Errors: BucketError, OSError where ``folder`` cannot
    be written.

    A damaged object is deleted, so that the next attempt uploads it again.
    """
    for name, digest in digests.items():
        if not wanted():
            return
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        bucket.get(_object(digest), target)
        if sha256_file(target) != digest:
            bucket.delete(_object(digest))
            raise BucketError(f"{bucket.url}: {name} arrived damaged and was deleted there")


def _object(digest: str) -> str:
    return f"objects/{digest[:2]}/{digest}"


def artifact_files(run: Path, output: Path) -> dict[str, str]:
    """Files of the artifact at ``run``/``output``: name in the run folder -> sha256."""
    found = {str(output / MANIFEST): sha256_file(run / output / MANIFEST)}
    for name, entry in Artifact.load(run / output).manifest.files.items():
        found[str(output / name)] = entry.sha256
    return found


def reference_files(run: Path, name: str) -> dict[str, str]:
    """The logits of the reference that results call ``name``: name in the run folder -> sha256."""
    files = [path for folder in _references(run, name) for path in sorted(folder.iterdir())]
    return {str(path.relative_to(run)): digest for path, digest in sha256_files(files).items()}


def _references(run: Path, name: str) -> list[Path]:
    """Folders of logits of a reference, which is known by the digest that its own evaluation has noted;
    before that, those that belong to no other (the shared cache may have had them)."""
    digests = {path: _noted(path, "subject", "digest") for path in (run / "results").glob("*.eval.json")}
    own = digests.get(results_path(run, name, "eval"))
    folders = {
        path.parent: _noted(path, "reference") for path in (run / "cache").glob("reference-*/cache.json")
    }
    return [
        folder
        for folder, its in sorted(folders.items())
        if (its == own if own else its not in digests.values())
    ]


def _noted(path: Path, *keys: str) -> str:
    """What a JSON file says there; empty where it is gone or says nothing."""
    try:
        value: Any = read_json(path)
        for key in keys:
            value = value[key]
        return str(value)
    except (BadInput, KeyError, TypeError):
        return ""


def settle(made: Mapping[str, str], node: Path, run: Path) -> None:
    """Put what came from a node, lying in ``node`` as it lay in its work folder, where a step of this machine
    leaves it."""
    for name in made:
        path = Path(plain_name(name, "a node"))
        if path.parts[0] == "artifacts" and path.name == MANIFEST and (node / path).is_file():
            folder = path.parent
            (run / folder).parent.mkdir(parents=True, exist_ok=True)
            commit(node / folder, run / folder, Artifact.load(node / folder).manifest, force=True)
        elif path.parts[0] == "cache" and len(path.parts) > 1:
            cached = Path("cache", path.parts[1])
            if (node / cached).exists():  # a file of a folder that has been moved
                put_unless_there(node / cached, run / cached)
        elif path.parts[0] == ".work":
            put_file(node / path, run / path)
