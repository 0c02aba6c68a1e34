"""An artifact made ready for another program: the folder is whole, or not there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantize.artifact.artifact import DROPPINGS, Artifact
from quantize.artifact.of_path import require_artifact
from quantize.errors import BadInput
from quantize.files import parse_json, read_bytes
from quantize.into_place import put_in_place
from quantize.staging import claim, staging
from quantize.terminal import printable
from serving.llamafile import llamafile
from serving.lmstudio import lmstudio
from serving.ollama import ollama
from serving.target import Exported, Request, Target, place
from serving.transformers_script import transformers
from serving.vllm import sglang, vllm

TARGETS: dict[str, Target] = {
    "ollama": ollama,
    "vllm": vllm,
    "sglang": sglang,
    "lmstudio": lmstudio,
    "llamafile": llamafile,
    "transformers": transformers,
}
PORTS = {"vllm": 8000, "sglang": 30000}
RECORD = "export.json"


def export(
    folder: Path,
    target: str,
    out: Path,
    *,
    name: str = "",
    port: int | None = None,
    context: int | None = None,
    binary: Path | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Exported:
    """``target``: one of TARGETS. Returns what was written, with what is lost.

    Errors: BadInput where the artifact does not match its manifest, or ``out`` is taken; Unsupported where
    the program does not open it.
    """
    if binary is not None and target != "llamafile":
        raise BadInput(f"export --for {target}: --binary belongs to --for llamafile")
    artifact = require_artifact(folder)
    real = claim(out, force, [folder, *([binary] if binary else [])], _why_not_ours)
    named = printable(name or default_name(artifact), 200)
    say(f"{folder}: comparing its files with its manifest")
    artifact.check_files()
    made = TARGETS[target](
        Request(artifact, real, named, port or PORTS.get(target, 8080), context=context, binary=binary)
    )
    with staging(real) as stage:
        stage.mkdir(exist_ok=True)
        for file, text in made.texts.items():
            (stage / file).write_text(text, encoding="utf-8")
        for file, source in made.links.items():
            if not place(source, stage / file):
                made.notes.append(f"{file} is a copy: {out} lies on another disk than the artifact")
        for file, build in made.built.items():
            build(stage / file)
        for file in made.scripts:
            (stage / file).chmod(0o755)
        files = sorted([*made.texts, *made.links, *made.built])
        record = document(made, target, artifact, named) | {"files": files}
        (stage / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        put_in_place(stage, real, force)
    return made


def document(made: Exported, target: str, artifact: Artifact, name: str) -> dict[str, Any]:
    return {
        "for": target,
        "name": name,
        "recipe": artifact.manifest.recipe_short,
        "artifact_digest": artifact.digest,
        "start": made.start,
        "lost": made.lost,
        "notes": made.notes,
    }


def default_name(artifact: Artifact) -> str:
    return f"{artifact.manifest.source.name}-{artifact.manifest.recipe_short}"


def _why_not_ours(folder: Path) -> str:
    """Only an export is replaced: a folder that holds what its record names."""
    try:
        record = parse_json(read_bytes(folder / RECORD), str(folder / RECORD))
        named = {str(name).partition("/")[0] for name in record["files"]}
    except (BadInput, TypeError, KeyError):
        return f"holds no {RECORD}; --force replaces only an export"
    others = {path.name for path in folder.iterdir()} - named - {RECORD, *DROPPINGS}
    return f"holds {min(others)} beside the export, which --force would delete" if others else ""
