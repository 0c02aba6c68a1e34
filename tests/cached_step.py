"""What tests of the shared cache put into one, and what a fetch of it brings."""

from pathlib import Path
from typing import Any

import pytest

KEY = "ab" + 62 * "0"
CONTENT = {"a.bin": bytes(range(256)) * 1000, "deep/b.txt": b"text"}


def read(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fetch(cache: Any, into: Path) -> dict[str, bytes] | None:
    into.mkdir()
    found = cache.fetch(KEY, into)
    assert found or not list(into.iterdir())
    return read(into) if found else None


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    for name, content in CONTENT.items():
        path = tmp_path / "made" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return {name: tmp_path / "made" / name for name in CONTENT}


@pytest.fixture
def said() -> list[str]:
    return []
