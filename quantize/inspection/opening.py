"""From what a person types to the headers of what lies there: a folder, a GGUF file, or either on the Hub."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantize.artifact.artifact import MANIFEST, Manifest, read_manifest
from quantize.checkpoint.config import read_config
from quantize.checkpoint.safetensors_header import StoredTensor
from quantize.checkpoint.weight_files import read_weights
from quantize.errors import BadInput, QuantwrightError
from quantize.files import check_links, inside, typed_path
from quantize.gguf.container.files import PART, SUFFIX, find_gguf
from quantize.gguf.container.reader import Fetch, GgufFile, read_gguf
from quantize.sources.gguf_repository import is_gguf_name, quantizations
from quantize.sources.hub import HUB_ID, resolve_model
from quantize.sources.hub_errors import hub_errors
from quantize.sources.hub_headers import HubHeaders
from quantize.staging import sweep_temporary


@dataclass(frozen=True)
class Looked:
    """Either ``gguf``, or ``config`` and ``tensors`` of a Hugging Face folder. ``folder``: where the small
    files lie. ``manifest``: where this program made it and says so; ``remarks``: what could not be read
    besides."""

    model: str
    folder: Path
    commit: str | None = None
    gguf: GgufFile | None = None
    config: dict[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, StoredTensor] = field(default_factory=dict)
    manifest: Manifest | None = None
    remarks: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Of the files that hold the weights."""
        found = self.gguf.tensors if self.gguf else self.tensors
        return sum(file.stat().st_size for file in {tensor.file for tensor in found.values()})


def look(model: str, scratch: Path | None = None) -> Looked:
    """``model``: a folder or a GGUF file (tried first), ``org/name[@revision]``, or one file of a GGUF
    repository, ``org/name:Q4_K_M``.

    Errors: BadInput where it is none of these, or damaged; StepFailed where the Hub cannot be reached.
    """
    sweep_temporary(scratch)
    path = typed_path(model)
    if path.exists():
        return _local(model, path)
    if not is_gguf_name(model) and not HUB_ID.fullmatch(model):
        raise BadInput(f"{model}: no such file or folder, and not a Hub id (org/name[@revision])")
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return _cached(model)
    hub = HubHeaders(model, scratch)
    if hub.gguf is None:
        hub = _only_gguf(hub, model, scratch)
    if hub.gguf is not None:
        return _file(model, hub.gguf, hub.folder, hub.commit, hub.fetch)
    hub.fetch_headers()
    return _folder(model, hub.folder, hub.commit)


def _only_gguf(hub: HubHeaders, model: str, scratch: Path | None) -> HubHeaders:
    """Of a repository that holds only GGUF files, the one. Errors: BadInput where there are several."""
    if "config.json" in hub.sizes and any(name.endswith(".safetensors") for name in hub.sizes):
        return hub
    if not any(name.endswith(SUFFIX) for name in hub.sizes):
        return hub
    found = quantizations(hub.repository, hub.commit)
    if len(found) > 1:
        labels = ", ".join(each.label for each in found)
        raise BadInput(f"{model}: holds several GGUF files; give one, as {model}:{found[0].label} ({labels})")
    return HubHeaders(f"{hub.repository}@{hub.commit}:{found[0].label}", scratch)


def _cached(model: str) -> Looked:
    """From the Hub's cache alone. Errors: BadInput, StepFailed where it is not there."""
    if is_gguf_name(model):
        path, commit = resolve_model(model)
        return _file(model, path, path.parent, commit)
    from huggingface_hub import snapshot_download

    name, _, revision = model.partition("@")
    with hub_errors(name, revision or None):
        folder = Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    return _local(model, folder, folder.name)


def _local(model: str, path: Path, commit: str | None = None) -> Looked:
    file = find_gguf(path)
    if file is not None:
        return _file(model, file, file.parent, commit)
    if not path.is_dir():
        raise BadInput(f"{model}: is neither a folder nor a GGUF file; give one, or a Hub id (org/name)")
    return _folder(model, path, commit)


def _file(model: str, path: Path, folder: Path, commit: str | None, fetch: Fetch | None = None) -> Looked:
    gguf = read_gguf(path, fetch)
    # a manifest in a folder of several files need not be this one's
    alone = {PART.sub("", each.stem) for each in folder.glob(f"*{SUFFIX}")} == {PART.sub("", path.stem)}
    manifest, remarks = _manifest(folder) if alone else (None, ())
    return Looked(model, folder, commit, gguf=gguf, manifest=manifest, remarks=remarks)


def _folder(model: str, folder: Path, commit: str | None) -> Looked:
    check_links(folder)
    config = read_config(folder)
    tensors, files = read_weights(folder, config.get("transformers_weights"))
    manifest, remarks = _manifest(folder)
    if files.left_alone:
        remarks += (f"other .safetensors lie beside the model's: {', '.join(files.left_alone[:8])}",)
    return Looked(model, folder, commit, config=config, tensors=tensors, manifest=manifest, remarks=remarks)


def _manifest(folder: Path) -> tuple[Manifest | None, tuple[str, ...]]:
    path = inside(folder, MANIFEST)
    if not path.is_file():
        return None, ()
    try:
        return read_manifest(path), ()
    except QuantwrightError as error:
        return None, (f"its manifest cannot be read: {error}",)
