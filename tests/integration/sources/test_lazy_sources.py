"""A GGUF file as a source: what is made of it, and what is written on the way."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lazily import same_tensors

from quantize import convert, open_checkpoint
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.materialised import materialised
from quantize.errors import BadInput
from quantize.recipe import RunOptions

pytest.importorskip("llama_cpp")
RUN = RunOptions(device="cpu", threads=1, progress=False)
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def gguf(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("ggufs")

    def make(recipe: str) -> Path:
        if not (folder / recipe).exists():
            convert(demo_checkpoint, recipe, folder / recipe, verify="none", run=RUN)
        return next((folder / recipe).glob("*.gguf"))

    return make


@pytest.mark.parametrize(
    ("source", "to"), [("gguf-q8_0", "gguf-q4_k_m"), ("gguf-f16", "bfloat16"), ("gguf-f16", "gguf-q8_0")]
)
def test_the_same_bytes_as_through_a_folder(gguf: Made, source: str, to: str, tmp_path: Path) -> None:
    file = gguf(source)
    made = convert(str(file), to, tmp_path / "lazily", verify="tensors", run=RUN)
    with materialised(open_checkpoint(file), tmp_path) as folder:
        stored = replace(Checkpoint.open(folder), source=str(file))
        same_tensors(stored, open_checkpoint(file))
        through = convert(stored, to, tmp_path / "through", verify="tensors", run=RUN)
    assert made.manifest.files == through.manifest.files
    assert made.manifest.source.digest != through.manifest.source.digest


def test_its_digest_is_of_what_it_holds(gguf: Made, tmp_path: Path) -> None:
    file = gguf("gguf-q8_0")
    renamed = shutil.copy(file, tmp_path / "sha256-0123")
    assert open_checkpoint(file).digest == open_checkpoint(renamed).digest
    with open(renamed, "r+b") as out:
        out.seek(-4, os.SEEK_END)
        out.write(b"\1\2\3\4")
    assert open_checkpoint(file).digest != open_checkpoint(renamed).digest


def test_the_file_that_is_read_is_not_replaced(gguf: Made) -> None:
    file = gguf("gguf-q8_0")
    with pytest.raises(BadInput, match=r"holds .*gguf, an input that would be lost"):
        convert(open_checkpoint(file), "gguf-q4_k_m", file.parent, force=True, run=RUN)
    assert file.is_file()


def limited(size: int, scratch: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command where no file may become larger than ``size`` bytes; the temporary folder is empty
    afterwards."""
    done = subprocess.run(
        [sys.executable, "-m", "quantize.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(scratch), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    assert not [path for path in scratch.iterdir() if path.name.startswith("quantwright")]
    return done


@pytest.mark.parametrize("command", ["plan", "check"])
def test_nothing_of_the_model_is_written(command: str, gguf: Made, tmp_path: Path) -> None:
    file = gguf("gguf-q8_0")
    assert file.stat().st_size > 1_000_000
    done = limited(300_000, tmp_path, command, file, "--to", "gguf-q4_k_m,bfloat16,gptq-int4", "--json")
    assert (done.returncode, "failed" in done.stdout.replace('"failed": false', "")) == (0, False), (
        done.stderr
    )


def test_converting_needs_no_second_copy(gguf: Made, tmp_path: Path) -> None:
    """The output is 3 MB; as float32 the model would take 17."""
    out = tmp_path / "out"
    arguments = ("convert", gguf("gguf-q8_0"), "--to", "gguf-q4_k_m", "--verify", "tensors", "-o", out)
    done = limited(4_000_000, tmp_path, *arguments)
    assert done.returncode == 0, done.stderr


def test_a_plan_or_check_in_which_something_failed_exits_1(gguf: Made, tmp_path: Path) -> None:
    file = gguf("gguf-q8_0")
    (tmp_path / "job.yaml").write_text(f"models: [{file}]\nrecipes: [gguf-q4_k_m]\nbenchmark: {{}}\n")
    for arguments in (("plan", file, "--to", "gguf-q4_k_m"), ("plan", tmp_path / "job.yaml")):
        done = limited(1000, tmp_path, *arguments)
        assert done.returncode == 1
        assert "cannot hold the config and tokenizer" in done.stdout
    done = limited(1000, tmp_path, "check", tmp_path / "job.yaml", "--json")
    assert done.returncode == 1
    assert '"failed": true' in done.stdout
    assert limited(1000, tmp_path, "check", file).returncode == 1
