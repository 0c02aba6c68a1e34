"""Finished layers in a work folder: whole or absent, one process at a time, gone once they are of no use."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from jobs.commands.clean import clean
from quantize.artifact.artifact import Note
from quantize.engines.native.parts import Part, discard, work_folders, work_parts
from quantize.numerics.grids import Codes

KEY = {"method": "test"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def a_part() -> Part:
    torch.manual_seed(0)
    codes = Codes(
        torch.randint(0, 16, (8, 64), dtype=torch.uint8),
        torch.rand(8, 2),
        torch.full((8, 2), 8, dtype=torch.int32),
    )
    note = Note(tensor="a.b", what="this", why="that")
    return Part({"model.layers.0.q": codes}, {"model.norm.weight": torch.rand(4)}, {"x": 0.1}, [note])


def test_what_is_read_is_what_was_written() -> None:
    part = a_part()
    with work_parts(KEY) as parts:
        assert parts.read(3) is None
        parts.write(3, part)
    with work_parts(KEY) as parts:
        found = parts.read(3)
        assert found is not None
        assert found.notes == part.notes
        assert found.losses == part.losses
        assert torch.equal(found.changed["model.norm.weight"], part.changed["model.norm.weight"])
        (name,) = found.codes
        assert torch.equal(found.codes[name].values(), part.codes[name].values())
    with work_parts({**KEY, "bits": 3}) as parts:
        assert parts.read(3) is None


def test_another_process_of_the_same_key_has_a_folder_of_its_own() -> None:
    script = textwrap.dedent(f"""
        from quantize.engines.native.parts import work_parts
        with work_parts({KEY!r}) as parts:
            print(parts.read(0) is None, parts.folder)
    """)
    with work_parts(KEY) as parts:
        parts.write(0, a_part())
        child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        absent, folder = child.stdout.split()
        assert absent == "True"
        assert Path(folder) != parts.folder
        assert not Path(folder).exists()
        discard(parts.folder)  # a process works in it: it stays
        assert parts.read(0) is not None
    discard(parts.folder)
    assert not parts.folder.exists()


def test_clean_removes_what_nobody_works_on() -> None:
    with work_parts({"old": 1}) as old:
        old.write(0, a_part())
    with work_parts(KEY) as parts:
        parts.write(0, a_part())
        assert work_folders() == [old.folder]
        asked = CliRunner().invoke(clean, [], input="n\n", standalone_mode=False)
        assert "remove these 1" in asked.output
        assert old.folder.exists()
        CliRunner().invoke(clean, ["--yes"], standalone_mode=False)
        assert not old.folder.exists()
        assert parts.read(0) is not None
    assert "nothing to remove" not in CliRunner().invoke(clean, ["--yes"], standalone_mode=False).output
    assert "nothing to remove" in CliRunner().invoke(clean, ["--yes"], standalone_mode=False).output


def test_what_nobody_came_back_to_goes_after_days() -> None:
    with work_parts(KEY) as parts:
        parts.write(0, a_part())
        old = parts.folder
    os.utime(old, (0, 0))
    with work_parts({**KEY, "bits": 3}) as other:
        assert not old.exists()
        assert other.folder.exists()
