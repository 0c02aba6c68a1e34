"""What published files are called: as llama.cpp names them, by the model's own name."""

import re
from collections.abc import Mapping
from typing import Any

from quantize.artifact.artifact import Artifact
from quantize.errors import BadInput
from quantize.terminal import printable

#: what folders are called that hold a model, whatever it is
GENERIC = re.compile(
    r"(check-?points?|ckpts?|models?|outputs?|out|results?|weights|snapshots?|export(ed)?|merged|final|best|last|"
    r"latest|hf|source|src|base|data|tmp|temp|tests?)([-_.]?\d+)*",
    re.IGNORECASE,
)
NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,95}")
#: of a GGUF file's name: size label, type, part
TAIL = re.compile(
    r"(?P<size>-(?:\d+x)?\d+(?:\.\d+)?[KMBTQ])?(?P<rest>-[A-Z0-9_]+(?:-\d{5}-of-\d{5})?\.gguf)$"
)
#: in the details of a published manifest: name of a file -> what it was called when it was converted
NAMED = "named"


def own_name(source: str, hub_id: str | None, base_model: str | None, given: str | None) -> str | None:
    """The name that files get; None where they keep theirs. ``source``: the name of the source's folder.

    Errors: BadInput where that says nothing of the model and nobody else does; where ``given`` is no name.
    """
    if given is not None:
        if not NAME.fullmatch(given):
            raise BadInput(
                f"--name {printable(given, 200)!r}: expected letters, digits, dots, dashes and underscores, "
                "e.g. SmolLM2-135M-Instruct"
            )
        return given
    if hub_id is not None or not GENERIC.fullmatch(source):
        return None
    if base_model is not None:
        return base_model.partition("/")[2]
    raise BadInput(
        f"publish: the source's folder is called {printable(source, 100)!r}, which is not a model's name; "
        "give --name NAME (or --base-model org/name), by which its files are called"
    )


def named(artifact: Artifact, own: str | None) -> Artifact:
    """The artifact with its GGUF files called by ``own``; the manifest says what they were called. None
    changes nothing."""
    if own is None:
        return artifact
    manifest = artifact.manifest
    names = {name: _file_name(name, own) for name in manifest.files}
    if all(old == new for old, new in names.items()):
        return artifact
    files = {names[name]: entry for name, entry in manifest.files.items()}
    before = {new: old for old, new in names.items() if new != old}
    details = {**manifest.details, NAMED: before}
    return Artifact(artifact.folder, manifest.model_copy(update={"files": files, "details": details}))


def _file_name(name: str, own: str) -> str:
    found = TAIL.search(name)
    if found is None:
        return name
    size = found["size"] or ""
    return own + ("" if size[1:].lower() in own.lower() else size) + found["rest"]


def before_naming(artifact: Artifact, name: str) -> str:
    """What ``name``, a file of the manifest, is called in the folder that it was converted to."""
    return _names(artifact.manifest.details).get(name, name)


def as_converted(artifact: Artifact) -> Artifact:
    """With the names that its files had: by their digest measurements and verifications are known."""
    if not (names := _names(artifact.manifest.details)):
        return artifact
    files = {names.get(name, name): entry for name, entry in artifact.manifest.files.items()}
    return Artifact(artifact.folder, artifact.manifest.model_copy(update={"files": files}))


def _names(details: Mapping[str, Any]) -> dict[str, str]:
    said = details.get(NAMED)
    if not isinstance(said, dict):
        return {}
    return {str(new): old for new, old in said.items() if isinstance(old, str)}
