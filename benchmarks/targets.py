"""From what a person types to something that can be measured: an artifact, a .gguf, an HF folder or a Hub id."""

import json
from pathlib import Path
from typing import Any

from benchmarks.speed import Target
from evals.result import Subject
from quantize.artifact import MANIFEST, Artifact
from quantize.errors import BadInput

WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt")


def find_target(name: str, load_as: str = "") -> tuple[Target, Subject]:
    """Errors: BadInput where nothing of that name can be opened; StepFailed where the Hub cannot be reached."""
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise BadInput(f"{name}: expected an artifact folder, a .gguf file, a Hugging Face folder or a Hub id")
        size = path.stat().st_size
        return Target(name, path, size), Subject(name, recipe=path.stem, size_bytes=size, loads_in=("llama.cpp",))
    if not path.is_dir():
        from quantize.hub import resolve_model

        path, _ = resolve_model(name)
    if (path / MANIFEST).is_file():
        return _artifact(name, path, load_as)
    if not (path / "config.json").is_file() and not any(path.glob("*.gguf")):
        raise BadInput(
            f"{name}: neither an artifact (manifest.json) nor a Hugging Face folder (config.json) nor a folder of .gguf"
        )
    files = [file for file in path.iterdir() if file.is_file() and file.suffix in WEIGHTS]
    size = sum(file.stat().st_size for file in files)
    config = _config(path)
    quantized = (config.get("quantization_config") or {}).get("quant_method")
    recipe = load_as or (str(quantized) if quantized else str(config.get("dtype") or config.get("torch_dtype") or path.name))
    return Target(name, path, size, load_as=load_as, context=_context(config)), Subject(
        name, recipe=recipe, model=name, size_bytes=size
    )


def _artifact(name: str, path: Path, load_as: str) -> tuple[Target, Subject]:
    if load_as:
        raise BadInput(f"{name}: is an artifact already; --load-as is for unquantized checkpoints")
    artifact = Artifact.load(path)
    manifest = artifact.manifest
    subject = Subject(
        name=name,
        recipe=manifest.recipe_short,
        model=manifest.source.id,
        digest=artifact.digest,
        verified=artifact.verified,
        size_bytes=artifact.size_bytes,
        bits_per_weight=artifact.bits_per_weight,
        parameters=manifest.source.parameters,
        loads_in=manifest.loads_in,
        notes=tuple(note.model_dump() for note in manifest.notes),
    )
    return Target(name, path, artifact.size_bytes, artifact.digest, context=_context(_config(path))), subject


def _config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return config


def _context(config: dict[str, Any]) -> int:
    return int((config.get("text_config") or config).get("max_position_embeddings") or 0)
