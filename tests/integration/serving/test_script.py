"""The script for transformers runs, on artifacts of folders and of GGUF."""

import subprocess
import sys
from pathlib import Path

import pytest

from quantize.conversion import convert
from quantize.process import child_environment
from serving.export import export


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["rtn-int4", "bnb-nf4", "quanto-int8", "gguf-q8_0", "ct-w4a16"])
def test_the_script_answers(recipe: str, demo_checkpoint: Path, tmp_path: Path) -> None:
    convert(demo_checkpoint, recipe, tmp_path / "artifact", verify="none")
    export(tmp_path / "artifact", "transformers", tmp_path / "out")
    done = subprocess.run(
        [sys.executable, tmp_path / "out" / "chat.py", "The first thing that"],
        capture_output=True, text=True, env=child_environment(HF_HUB_OFFLINE="1"), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) > 5
