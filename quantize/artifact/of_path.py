"""The artifact that a path belongs to: a folder that `convert` made, or one of several published together."""

from pathlib import Path

from quantize.artifact.artifact import MANIFEST, Artifact, read_manifest
from quantize.errors import BadInput

#: where a repository of several artifacts keeps their manifests
PUBLISHED = "manifests"


def find_artifact(path: Path) -> Artifact | None:
    """Of a folder, or of one file in it; None where no manifest names it.

    Errors: BadInput where a manifest is malformed, or a file that it names is missing.
    """
    folder = path if path.is_dir() else path.parent
    if (folder / MANIFEST).is_file():
        artifact = Artifact.load(folder)
        if path.is_dir() or path.name in artifact.manifest.files:
            return artifact
    for manifest in map(read_manifest, sorted((folder / PUBLISHED).glob("*.json"))):
        if path.name in manifest.files and all((folder / name).is_file() for name in manifest.files):
            return Artifact(folder, manifest)
    return None


def require_artifact(path: Path) -> Artifact:
    """Errors: BadInput where ``path`` is none, or holds several."""
    if (found := find_artifact(path)) is not None:
        return found
    if not (path / MANIFEST).is_file() and (several := sorted((path / PUBLISHED).glob("*.json"))):
        names = sorted(name for file in several for name in read_manifest(file).files if _is_gguf(name))
        raise BadInput(f"{path}: holds several artifacts; give one of their files: {', '.join(names)}")
    return Artifact.load(path)


def _is_gguf(name: str) -> bool:
    return name.endswith(".gguf")
