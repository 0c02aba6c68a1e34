"""Which artifact a folder or a file belongs to."""

import shutil
from pathlib import Path

import pytest
from sample_artifact import make_artifact

from quantize.artifact.artifact import MANIFEST
from quantize.artifact.of_path import PUBLISHED, find_artifact, require_artifact
from quantize.errors import BadInput


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Two artifacts in one folder, as a repository of them is pulled."""
    folder = tmp_path / "pulled"
    (folder / PUBLISHED).mkdir(parents=True)
    for short in ("gguf-q4_k_m", "gguf-q8_0"):
        made = make_artifact(tmp_path / short, short)
        shutil.copy(made.folder / MANIFEST, folder / PUBLISHED / f"{short}.json")
        for name in made.manifest.files:
            shutil.copy(made.folder / name, folder / name)
    return folder


def test_a_folder_and_its_files(tmp_path: Path) -> None:
    made = make_artifact(tmp_path / "made")
    (file,) = made.manifest.files
    for path in (made.folder, made.folder / file):
        assert require_artifact(path).digest == made.digest
    (made.folder / "else.gguf").write_bytes(b"GGUF")
    assert find_artifact(made.folder / "else.gguf") is None


def test_one_of_several_that_were_published(published: Path) -> None:
    found = require_artifact(published / "small-Q8_0.gguf")
    assert (found.manifest.recipe_short, found.folder) == ("gguf-q8_0", published)
    with pytest.raises(BadInput, match=r"several artifacts; give one .*: small-Q4_K_M.gguf, small-Q8_0.gguf"):
        require_artifact(published)
    (published / "small-Q8_0.gguf").unlink()
    assert find_artifact(published / "small-Q8_0.gguf") is None


def test_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    for path in (tmp_path, tmp_path / "a.gguf", tmp_path / "nothing"):
        assert find_artifact(path) is None
        with pytest.raises(BadInput, match=r"no manifest.json, so this is not an artifact"):
            require_artifact(path)
