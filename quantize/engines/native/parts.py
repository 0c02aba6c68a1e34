"""What is finished of a long conversion, layer by layer, in a work folder: an interrupted one goes on there.

The folder lies in the user's cache, under a key of everything that changes the bytes. Each part appears under
its name when it is whole. While a process works there it holds a lock; another one of the same key meanwhile
has a folder of its own, in which nothing is found. Whoever commits the artifact removes the folder
(``discard``); what nobody came back to in ``KEPT_DAYS`` goes when the next one begins.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.artifact.artifact import Note
from quantize.files import user_cache
from quantize.into_place import remove
from quantize.locks import alone
from quantize.numerics.grids import Codes
from quantize.staging import temporary_folder

if TYPE_CHECKING:
    import torch

FOLDER, LOCK, KEY = "work", "lock", "key.json"
KEPT_DAYS = 14


@dataclass
class Part:
    """What was made of one layer. ``codes``: by the name of the matrix; ``changed``: transformers' parameters
    that got other values; ``losses``: by the name of the matrix, see the engine that made it."""

    codes: dict[str, Codes] = field(default_factory=dict)
    changed: "dict[str, torch.Tensor]" = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


class Parts:
    """In ``folder``, which this process alone writes into."""

    def __init__(self, folder: Path):
        self.folder = folder

    def _path(self, index: int) -> Path:
        return self.folder / f"layer-{index:05d}.safetensors"

    def read(self, index: int) -> Part | None:
        """None where it is not finished."""
        from safetensors import SafetensorError, safe_open

        path = self._path(index)
        if not path.is_file():
            return None
        part, tensors = Part(), {}
        try:
            with safe_open(path, "pt") as file:
                said = json.loads(file.metadata()["part"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError):  # cut off where the machine stopped: to be made again
            return None
        for name in said["names"]:
            part.codes[name] = Codes(*(tensors[f"{kind} {name}"] for kind in ("codes", "scales", "zeros")))
        for name, tensor in tensors.items():
            kind, _, parameter = name.partition(" ")
            if kind == "changed":
                part.changed[parameter] = tensor
        part.losses = said["losses"]
        part.notes = [Note(**note) for note in said["notes"]]
        return part

    def write(self, index: int, part: Part) -> None:
        from safetensors.torch import save_file

        tensors = {f"changed {name}": tensor.cpu().contiguous() for name, tensor in part.changed.items()}
        for name, codes in part.codes.items():
            for kind in ("codes", "scales", "zeros"):
                tensors[f"{kind} {name}"] = getattr(codes, kind).cpu().contiguous()
        said = {
            "names": list(part.codes),
            "losses": part.losses,
            "notes": [note.model_dump() for note in part.notes],
        }
        path = self._path(index)
        new = path.with_suffix(".new")
        save_file(tensors, new, metadata={"part": json.dumps(said)})
        os.replace(new, path)


@contextmanager
def work_parts(key: Mapping[str, Any], scratch: Path | None = None) -> Iterator[Parts]:
    """The parts of the conversion that ``key`` (JSON) names, those that were finished before among them."""
    _discard_old()
    text = json.dumps(key, sort_keys=True)
    folder = user_cache() / FOLDER / hashlib.sha256(text.encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder / LOCK) as mine:
        if mine:
            (folder / KEY).write_text(text + "\n", encoding="utf-8")
            yield Parts(folder)
            return
    with temporary_folder("work", scratch) as own:
        yield Parts(own)


def discard(folder: Path) -> None:
    """A work folder, once its artifact is committed; left where another process works in it."""
    if not folder.is_dir():
        return
    with alone(folder / LOCK) as mine:
        if mine:
            remove(folder)


def _discard_old() -> None:
    place, oldest = user_cache() / FOLDER, time.time() - KEPT_DAYS * 86400
    for folder in place.iterdir() if place.is_dir() else ():
        with suppress(OSError):  # another process was faster
            if folder.stat().st_mtime < oldest:
                discard(folder)


def work_folders() -> list[Path]:
    """Of all conversions that no process works on."""
    place = user_cache() / FOLDER
    found = []
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        with alone(path / LOCK) as mine:
            if mine:
                found.append(path)
    return found
