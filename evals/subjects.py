"""What a person typed, resolved: a quantwright artifact, a .gguf of anybody's, or a Hugging Face folder or Hub id."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evals.result import Subject
from quantize.artifact import MANIFEST, Artifact, Manifest
from quantize.checkpoint import VOCABULARY_FILES, read_safetensors_header, sha256_file
from quantize.errors import BadInput, QuantwrightError
from quantize.recipe import Recipe

DTYPE_RECIPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Typed:
    """``path`` is the file or folder to open; ``load_as`` quantizes it on the fly."""

    name: str
    path: Path
    artifact: Artifact | None = None
    load_as: Recipe | None = None

    @property
    def manifest(self) -> Manifest | None:
        return self.artifact.manifest if self.artifact else None

    @property
    def gguf(self) -> Path | None:
        if self.path.suffix == ".gguf":
            return self.path
        return next(iter(sorted(self.path.glob("*.gguf"))), None)

    @cached_property
    def config(self) -> dict[str, Any]:
        path = self.path / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise BadInput(f"{path}: not valid JSON ({error}); fetch the file again") from None
        return config if isinstance(config, dict) else {}

    @property
    def tokenizer_folder(self) -> Path | None:
        """Where the tokenizer file of the model this came from lies: its own folder, or the source's that the manifest names."""
        folders = [self.path] if self.path.is_dir() else []
        if self.manifest:
            folders.append(Path(self.manifest.source.id))
        for folder in folders:
            if any((folder / name).is_file() for name in VOCABULARY_FILES):
                return folder
        return None

    @cached_property
    def digest(self) -> str:
        """Of an artifact its own; of anything else sha256 over the names and contents of its files."""
        if self.artifact:
            return self.artifact.digest
        if self.path.is_file():
            return sha256_file(self.path)
        import hashlib

        whole = hashlib.sha256()
        for path in sorted(self.path.iterdir()):
            if path.suffix in (".json", ".safetensors", ".model", ".gguf", ".txt", ".jinja"):
                whole.update(f"{path.name} {sha256_file(path)}\n".encode())
        return whole.hexdigest()

    def same_as(self, other: "Typed | None") -> bool:
        return other is not None and self.load_as == other.load_as and self.path.resolve() == other.path.resolve()

    def subject(self, role: str = "") -> Subject:
        if self.manifest and self.artifact and not self.load_as:
            m = self.manifest
            return Subject(
                name=self.name,
                recipe=m.recipe_short,
                model=m.source.id,
                digest=self.digest,
                verified=self.artifact.verified,
                size_bytes=self.artifact.size_bytes,
                bits_per_weight=m.bits_per_weight,
                parameters=m.source.parameters,
                loads_in=m.loads_in,
                notes=tuple(note.model_dump() for note in m.notes),
                role=role,
            )
        weights, parameters, recipe = self._weights()
        if self.load_as:
            return Subject(
                name=self.name,
                recipe=self.load_as.short or self.load_as.method,
                model=str(self.path),
                digest=self.digest,
                parameters=parameters,
                role=role,
            )
        return Subject(
            name=self.name,
            recipe=recipe,
            model=self.name,
            digest=self.digest,
            size_bytes=_size(self.path),
            bits_per_weight=8 * weights / parameters if parameters else None,
            parameters=parameters,
            loads_in=("llama.cpp",) if self.gguf else ("transformers",),
            role=role,
        )

    def _weights(self) -> tuple[int, int | None, str]:
        """(bytes of weights, number of weights where the files tell, recipe)."""
        if self.gguf:
            return self.gguf.stat().st_size, None, self.gguf.name
        sizes: dict[str, int] = {}
        total = 0
        for path in sorted(self.path.glob("*.safetensors")):
            for info in read_safetensors_header(path).values():
                sizes[info.dtype] = sizes.get(info.dtype, 0) + info.parameters
                total += info.size_bytes
        quantization = self.config.get("quantization_config")
        if isinstance(quantization, dict):
            return total, None, str(quantization.get("quant_method", "quantized"))
        dtype = max(sizes, key=lambda d: sizes[d]) if sizes else ""
        return total, sum(sizes.values()) or None, DTYPE_RECIPES.get(dtype, dtype or self.path.name)


def resolve(name: str | Path, load_as: Recipe | None = None) -> Typed:
    """Errors: BadInput where nothing lies there, or it is neither an artifact, a GGUF nor a Hugging Face folder; StepFailed where
    the Hub cannot be reached."""
    typed, path = str(name), Path(name).expanduser()
    if path.suffix == ".gguf" and not path.is_dir():
        if not path.is_file():
            raise BadInput(f"{typed}: no such file")
        with open(path, "rb") as file:
            if file.read(4) != b"GGUF":
                raise BadInput(f"{typed}: not a GGUF file (its first bytes are not 'GGUF'); fetch it again")
        if load_as:
            raise BadInput(f"{typed}: --load-as quantizes a Hugging Face checkpoint on the fly; a .gguf is opened as it is")
        artifact = Artifact.load(path.parent) if (path.parent / MANIFEST).is_file() else None
        return Typed(typed, path, artifact if artifact and path.name in artifact.manifest.files else None)
    if not path.exists():
        from quantize.hub import resolve_model

        path, _ = resolve_model(typed)
    if path.is_file():
        raise BadInput(f"{typed}: is a file; give an artifact's or checkpoint's folder, a .gguf file, or a Hub id")
    artifact = Artifact.load(path) if (path / MANIFEST).is_file() else None
    found = Typed(typed, path, artifact, load_as)
    if not artifact and not found.gguf and not (path / "config.json").is_file():
        raise BadInput(f"{typed}: neither {MANIFEST}, config.json nor a .gguf in it; give an artifact's or a checkpoint's folder")
    if load_as and found.gguf:
        raise BadInput(f"{typed}: --load-as quantizes a Hugging Face checkpoint on the fly; a .gguf is opened as it is")
    return found


def guess_reference(subjects: list[Typed]) -> Typed | None:
    """The source that the artifacts' manifests name, or of a --load-as model the model itself; None where neither is at hand."""
    for subject in subjects:
        if subject.load_as:
            return Typed(subject.name, subject.path, subject.artifact)
    for subject in subjects:
        if subject.manifest:
            try:
                return resolve(subject.manifest.source.id)
            except QuantwrightError:
                continue
    return None


def slug(text: str) -> str:
    """A file name of letters, digits, dots, dashes and underscores, from the last two parts of a path or id."""
    parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".", "..")][-2:]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts)).strip("-.")[:80] or "model"


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.iterdir() if p.is_file())
