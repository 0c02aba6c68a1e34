"""A step's files for tests of the shared cache, and what a fetch of it brings."""

from pathlib import Path
from typing import Any

KEY = "ab" + 62 * "0"
CONTENT = {"a.bin": bytes(range(256)) * 1000, "deep/b.txt": b"text"}


def read(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fetch(cache: Any, into: Path) -> dict[str, bytes] | None:
    into.mkdir()
    found = cache.fetch(KEY, into)
    assert found or not list(into.iterdir())
    return read(into) if found else None
