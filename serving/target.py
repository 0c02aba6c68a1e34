"""What an export knows, and what it makes: files of text, links to the artifact's own, and built ones."""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantize.artifact.artifact import Artifact
from quantize.checkpoint.config import read_config
from quantize.errors import Unsupported
from quantize.gguf.container.reader import GgufFile, read_gguf

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
MAX_NAME_CHARACTERS = 100


@dataclass(frozen=True)
class Request:
    """``out``: where the folder will lie. ``name``: as which the model is served. ``binary``: a llamafile."""

    artifact: Artifact
    out: Path
    name: str
    port: int
    context: int | None = None
    binary: Path | None = None

    @property
    def config(self) -> dict[str, Any]:
        """config.json, what it says of the text model first. Only of a folder of Hugging Face's kind."""
        config = read_config(self.artifact.folder)
        text = config.get("text_config")
        return {**config, **(text if isinstance(text, dict) else {})}

    def gguf(self, program: str) -> tuple[Path, GgufFile]:
        """Errors: Unsupported where the artifact is no GGUF file, or one in several files."""
        path = self.artifact.gguf
        if path is None:
            raise Unsupported(
                f"{self.artifact.folder}: is {self.artifact.manifest.recipe_short}, and {program} opens GGUF "
                "files: convert the source with --to gguf-q4_k_m and export that"
            )
        if sum(name.endswith(".gguf") for name in self.artifact.manifest.files) > 1:
            raise Unsupported(
                f"{self.artifact.folder}: is a GGUF in several files, which {program} does not take: convert "
                "again without split_max_bytes"
            )
        return path, read_gguf(path)

    @property
    def folder_from_out(self) -> str:
        """The artifact as seen from the folder that is written: nothing names a path of this machine."""
        return os.path.relpath(self.artifact.folder.resolve(), self.out.resolve())


@dataclass
class Exported:
    """``texts``: name -> text; ``links``: name -> the artifact's file; ``built``: name -> what writes it.
    ``scripts``: names that may be run. ``lost``: what the program will do otherwise than the model's own
    template; ``notes``: what a person should know; ``start``: the command that starts it."""

    texts: dict[str, str] = field(default_factory=dict)
    links: dict[str, Path] = field(default_factory=dict)
    built: dict[str, Callable[[Path], None]] = field(default_factory=dict)
    scripts: tuple[str, ...] = ()
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    start: str = ""


Target = Callable[[Request], Exported]


def safe_name(text: str) -> str:
    """A name of letters, digits, points, hyphens and underscores."""
    name = _UNSAFE.sub("-", text).strip("-.")[:MAX_NAME_CHARACTERS].rstrip("-.")
    return name or "model"


def gguf_name(request: Request, path: Path) -> str:
    return f"{safe_name(path.stem)}.gguf"


def place(source: Path, target: Path) -> bool:
    """``source`` as a file at ``target``: a hard link, and a copy where that is not possible. Whether it is a
    link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
        return True
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, target)
        return False


def whole(value: Any) -> int | None:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
    return value if good else None


def number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
    return float(value) if good else None


def gguf_context(kvs: Mapping[str, Any]) -> int | None:
    return whole(kvs.get(f"{kvs.get('general.architecture')}.context_length"))
