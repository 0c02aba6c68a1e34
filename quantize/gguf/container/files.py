"""Which file is a GGUF."""

import re
from pathlib import Path

from quantize.errors import BadInput

MAGIC = b"GGUF"
SUFFIX = ".gguf"
PART = re.compile(r"-(\d{5})-of-(\d{5})$")  # at the end of the name of a split file's part, before the suffix
NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)  # in the names of other GGUF files


def is_gguf(path: Path) -> bool:
    """Known by its first bytes, whatever it is called: Ollama keeps ``sha256-...``, others write
    MODEL.GGUF."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def find_gguf(path: Path) -> Path | None:
    """The GGUF file to open for ``path``: itself, or the one that a folder holds, of a split one the first
    part.

    None for anything else; a folder with config.json and .safetensors is a checkpoint, whatever lies beside
    them.
    Errors: BadInput where a folder holds several.
    """
    if not path.is_dir():
        return path if is_gguf(path) or path.suffix.lower() == SUFFIX else None
    files = [
        file
        for file in sorted(path.iterdir())
        if file.suffix.lower() == SUFFIX and not NO_MODEL.search(file.name)
    ]
    if files and (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return None
    if len({PART.sub("", file.stem) for file in files}) > 1:
        raise BadInput(
            f"{path}: holds {files[0].name}, "
            f"{files[-1].name}{' and more' * (len(files) > 2)}; give one of the files"
        )
    return files[0] if files else None
