"""What a person typed, resolved: a quantwright artifact, a .gguf of anybody's, on disk or in a repository on
the Hub, or a Hugging Face folder or Hub id."""

import glob
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from quantize.artifact.artifact import MANIFEST, Artifact, Manifest
from quantize.checkpoint.checkpoint import (
    TOKENIZER_FILES,
    VOCABULARY_FILES,
    is_adapter_beside,
    read_config,
    read_weights,
)
from quantize.dtypes import dense
from quantize.errors import BadInput, QuantwrightError
from quantize.file_hashes import user_hashes
from quantize.files import check_links, typed_path
from quantize.gguf.container.files import find_gguf, is_gguf
from quantize.gguf.container.reader import read_gguf
from quantize.recipe import Recipe
from quantize.results import Subject
from quantize.sources.gguf_repository import HubGguf, find, is_gguf_name
from quantize.sources.hub import resolve_model

#: what libraries read of a model's folder where it is there
LOADED = (
    *TOKENIZER_FILES, "model.safetensors.index.json", "config.json", "generation_config.json",
    "adapter_config.json",
    "quanto_qmap.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip


@dataclass(frozen=True)
class Typed:
    """``path`` is the file or folder to open; ``load_as`` quantizes it on the fly. ``hub``: it lies there
    after ``fetch``."""

    name: str
    path: Path
    artifact: Artifact | None = None
    load_as: Recipe | None = None
    hub: HubGguf | None = None

    def fetch(self) -> None:
        """Errors: StepFailed where the Hub cannot be reached or the disk is full."""
        if self.hub:
            self.hub.fetch()

    def prune(self, say: Callable[[str], None]) -> None:
        """Delete what ``fetch`` brought, and nothing that was there before."""
        if self.hub:
            deleted = self.hub.delete()
            say(f"{self.name}: {'deleted' if deleted else 'was in the cache before, so it stays'}")

    @property
    def manifest(self) -> Manifest | None:
        return self.artifact.manifest if self.artifact else None

    @property
    def gguf(self) -> Path | None:
        return self.path if self.hub else find_gguf(self.path)

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_config(self.path) if (self.path / "config.json").is_file() else {}

    @property
    def tokenizer_folder(self) -> Path | None:
        """Where the tokenizer file of the model this came from lies: its own folder, or the source's that the
        manifest names."""
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
        import hashlib

        whole = hashlib.sha256()
        if self.path.is_file():
            files = gguf_files(self.path)
            if len(files) == 1:
                return user_hashes().sha256(self.path)
        else:
            files = sorted(self.path.iterdir())
        for path in files:
            if path.suffix in (".json", ".safetensors", ".model", ".gguf", ".txt", ".jinja"):
                whole.update(f"{path.name} {user_hashes().sha256(path)}\n".encode())
        return whole.hexdigest()

    def same_as(self, other: "Typed | None") -> bool:
        return (
            other is not None
            and self.load_as == other.load_as
            and self.path.resolve() == other.path.resolve()
        )

    @property
    def notes(self) -> tuple[dict[str, str], ...]:
        """What lies there and is not measured."""
        left_out = {
            "tensor": "*",
            "what": "the adapter beside the weights is not used",
            "why": "adapters are used only when named: convert --adapter merges it into the model",
        }
        return (left_out,) if is_adapter_beside(self.path) else ()

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
                notes=self.notes,
                role=role,
            )
        return Subject(
            name=self.name,
            recipe=recipe,
            model=self.hub.repository if self.hub else self.name,
            digest=self.digest,
            size_bytes=self.size_bytes,
            bits_per_weight=8 * weights / parameters if parameters else None,
            parameters=parameters,
            loads_in=("llama.cpp",) if self.gguf else ("transformers",),
            notes=self.notes,
            role=role,
        )

    @property
    def size_bytes(self) -> int:
        """Of everything at ``path``, fetched or not."""
        if self.hub:
            return self.hub.size_bytes
        files = (
            gguf_files(self.path) if self.path.is_file() else [p for p in self.path.iterdir() if p.is_file()]
        )
        return sum(path.stat().st_size for path in files)

    def _weights(self) -> tuple[int, int | None, str]:
        """(bytes of weights, number of weights where the files tell, recipe)."""
        if self.gguf:
            tensors = read_gguf(self.gguf).tensors.values()
            # by which reports know what it is
            name = self.gguf.name if self.gguf.suffix else f"{self.gguf.name}.gguf"
            return sum(t.size_bytes for t in tensors), sum(math.prod(t.shape) for t in tensors), name
        sizes: dict[str, int] = {}
        total = 0
        for info in read_weights(self.path, self.config.get("transformers_weights"))[0].values():
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.parameters
            total += info.size_bytes
        quantization = self.config.get("quantization_config")
        if isinstance(quantization, dict):
            return total, None, str(quantization.get("quant_method", "quantized"))
        dtype = max(sizes, key=lambda d: sizes[d]) if sizes else ""
        return total, sum(sizes.values()) or None, dense(dtype, dtype or self.path.name)


def resolve(name: str | Path, load_as: Recipe | None = None, code: bool = False) -> Typed:
    """``code``: of a model on the Hub its Python is fetched too.

    Errors: BadInput where nothing lies there, or it is neither an artifact, a GGUF nor a Hugging Face folder;
    StepFailed where the Hub cannot be reached.
    """
    typed, path = str(name), typed_path(name)
    if is_gguf_name(typed):
        if load_as:
            raise BadInput(
                f"{typed}: --load-as quantizes a Hugging Face checkpoint while "
                "loading, and a .gguf is opened unchanged; drop --load-as"
            )
        hub = find(typed)
        return Typed(typed, hub.path, hub=hub)
    if not path.is_dir() and find_gguf(path):
        if not path.is_file():
            raise BadInput(f"{typed}: no such file")
        if not is_gguf(path):
            raise BadInput(f"{typed}: not a GGUF file (its first bytes are not 'GGUF'); fetch it again")
        if load_as:
            raise BadInput(
                f"{typed}: --load-as quantizes a Hugging Face checkpoint while "
                "loading, and a .gguf is opened unchanged; drop --load-as"
            )
        artifact = Artifact.load(path.parent) if (path.parent / MANIFEST).is_file() else None
        if artifact is None or path.name not in artifact.manifest.files:
            return Typed(typed, path)
        artifact.check_files(user_hashes().sha256)
        return Typed(typed, path, artifact)
    if not path.exists():
        path, _ = resolve_model(typed, code=code)
    if path.is_file():
        raise BadInput(
            f"{typed}: is a file; give an artifact's or checkpoint's folder, a GGUF file, or a Hub id"
        )
    artifact = _checked(path) if (path / MANIFEST).is_file() else None
    if artifact is None:
        check_links(path)
    found = Typed(typed, path, artifact, load_as)
    if not artifact and not found.gguf and not (path / "config.json").is_file():
        if not typed_path(name).exists():
            raise BadInput(
                f"{typed}: no config.json in it; of a GGUF repository "
                f"name a file, {typed}:Q4_K_M, or all, {typed}:*"
            )
        raise BadInput(
            f"{typed}: neither {MANIFEST}, config.json nor a .gguf "
            "in it; give an artifact's or a checkpoint's folder"
        )
    if load_as and found.gguf:
        raise BadInput(
            f"{typed}: --load-as quantizes a Hugging Face checkpoint while "
            "loading, and a .gguf is opened unchanged; drop --load-as"
        )
    return found


def _checked(folder: Path) -> Artifact:
    """The artifact in ``folder``, which holds what its manifest says, byte for byte, and nothing else that a
    runtime would read: numbers are filed under the digest of those files. Errors: BadInput."""
    artifact = Artifact.load(folder)
    artifact.check_files(user_hashes().sha256)
    for path in sorted(folder.iterdir()):
        loaded = path.suffix in (".gguf", ".safetensors") or path.name in LOADED
        if loaded and path.name not in artifact.manifest.files:
            raise BadInput(
                f"{folder}: {path.name} does not belong to the "
                "artifact but would be read with it; move it away"
            )
    return artifact


def guess_reference(subjects: list[Typed], say: Callable[[str], None]) -> Typed | None:
    """The source that the artifacts' manifests name, or of a --load-as model the model itself; None where
    neither is found. ``say`` gets the reason why a named source is not used."""
    for subject in subjects:
        if subject.load_as:
            return Typed(subject.name, subject.path, subject.artifact)
    for subject in subjects:
        if subject.manifest:
            try:
                return resolve(subject.manifest.source.id)
            except QuantwrightError as error:
                say(f"the source of {subject.name} was not found: {error}")
    return None


def largest(subjects: list[Typed]) -> Typed:
    return max(subjects, key=lambda typed: typed.size_bytes)


def gguf_files(path: Path) -> list[Path]:
    """The parts of a split GGUF file given its first, else the file itself; those that are on disk."""
    stem, first, rest = path.name.partition("-00001-of-")
    return sorted(path.parent.glob(f"{glob.escape(stem)}-?????-of-{glob.escape(rest)}")) if first else [path]
