"""What tests of both kinds of shared cache put into one."""

from pathlib import Path

import pytest
from cached_step import CONTENT


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
