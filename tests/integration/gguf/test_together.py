"""`convert` to several GGUF types: one process reads the model once; what each gets is what it gets alone."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from quantize.artifact.artifact import Artifact
from quantize.conversion import convert
from quantize.errors import BadInput
from quantize.gguf.importance.file import Entry, ImportanceMatrix, write_imatrix
from quantize.methods.beside import in_one_process, read_beside, spell_beside
from quantize.methods.registry import parse_recipe, plan
from quantize.recipe import CalibrationOptions, RunOptions
from quantize.sources.opening import open_checkpoint

pytest.importorskip("llama_cpp")
TYPES = ("gguf-q4_k_m", "gguf-q8_0", "gguf-f16")


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(num_hidden_layers=1)


def command(checkpoint: Path, out: Path, *more: str) -> list[str]:
    recipes = ",".join(TYPES)
    return [
        sys.executable, "-m", "quantize.cli", "convert", str(checkpoint), "--to", recipes, "-o", str(out),
        "--json", "--threads", "2", *more,
    ]  # fmt: skip


def test_each_has_the_bytes_that_it_has_alone(checkpoint: Path, tmp_path: Path) -> None:
    words = command(checkpoint, Path("out"))  # where it is typed
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("in one process") == 1
    assert "gguf-q4_k_m, gguf-q8_0, in one process" in done.stderr
    documents = json.loads(done.stdout.splitlines()[-1])
    assert [document["recipe"] for document in documents] == list(TYPES)
    for name in TYPES[:2]:
        alone = convert(str(checkpoint), name, tmp_path / f"alone-{name}", run=RunOptions(threads=2))
        together = Artifact.load(tmp_path / "out" / name)
        together.check_files()
        assert together.manifest.files == alone.manifest.files
        assert together.manifest.verification == alone.manifest.verification
        assert together.manifest.recipe_digest == alone.manifest.recipe_digest
        assert together.digest == alone.digest
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(TYPES)


def test_a_process_that_is_killed_costs_nothing(checkpoint: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        command(checkpoint, tmp_path / "out", "--verify", "none"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        parent, killed = psutil.Process(process.pid), False
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline and process.poll() is None:
            for child in parent.children():
                if "--beside" in child.cmdline():
                    child.send_signal(signal.SIGKILL)
                    killed = True
            time.sleep(0.01)
        out, err = process.communicate()
    assert killed
    assert process.returncode == 0, err
    assert "gguf-q4_k_m: once more, by itself" in err
    assert [document["recipe"] for document in json.loads(out.splitlines()[-1])] == list(TYPES)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(TYPES)


def test_calibrated_recipes_share_a_process_and_have_the_bytes_that_they_have_alone(
    checkpoint: Path, tmp_path: Path
) -> None:
    recipes, text = ("gguf-q4_k_m:imatrix=auto", "awq-int4", "gptq-int4"), tmp_path / "text.txt"
    text.write_text(" ".join(f"{number} sheep in field {number % 7}." for number in range(1500)))
    options = ["--calibration", str(text), "--calibration-tokens", "2048", "--calibration-length", "64"]
    arguments = command(checkpoint, tmp_path / "out", *options)
    arguments[arguments.index("--to") + 1] = ",".join(recipes)
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "awq-int4, gptq-int4, gguf-q4_k_m:imatrix=auto, in one process" in done.stderr
    assert [document["recipe"] for document in json.loads(done.stdout.splitlines()[-1])] == list(recipes)
    calibration = CalibrationOptions(source=str(text), tokens=2048, sequence_length=64)
    for name in recipes:
        recipe = parse_recipe(name)
        together = Artifact.load(tmp_path / "out" / recipe.slug)
        alone = convert(
            str(checkpoint), recipe, tmp_path / f"alone-{recipe.slug}", calibration=calibration,
            run=RunOptions(threads=2), verify="none",
        )  # fmt: skip
        assert together.verified == "full"
        assert together.manifest.calibration == alone.manifest.calibration
        assert together.manifest.files == alone.manifest.files
    matrix = Artifact.load(tmp_path / "out" / parse_recipe(recipes[0]).slug).manifest.details["shared"]
    assert "sums of squares" in " ".join(matrix)


def test_recipes_go_to_the_process_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    entries = {"blk.0.attn_q.weight": Entry(np.ones((1, 256), np.float32), np.array([1]))}
    write_imatrix(Path("my, matrix=1.gguf"), ImportanceMatrix(entries, ("text",), 3, 512))
    weighted = parse_recipe({"method": "gguf", "type": "q4_k_m", "imatrix": "my, matrix=1.gguf"})
    recipes = [
        parse_recipe({"method": "gguf", "type": "q4_k_m", "tensor_types": ["ffn_(up|gate),x=q8_0"]}),
        parse_recipe("gguf-q8_0"),
    ]
    ((read, _),) = read_beside(spell_beside([(weighted, Path("out"))]))
    assert read.digest == weighted.digest
    assert read.files == (tmp_path / "my, matrix=1.gguf",)
    spelled = spell_beside([(recipe, tmp_path / "a b") for recipe in recipes])
    assert read_beside(spelled) == [(recipe, tmp_path / "a b") for recipe in recipes]
    with pytest.raises(BadInput, match="--beside: expected"):
        read_beside("[1")


def test_lossless_files_have_another_order_and_their_own_reading(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    names = ["gguf-q4_k_m", "gguf-f16", "gguf-q8_0", "bfloat16", "gguf-bf16"]
    works = [plan(opened, parse_recipe(name)) for name in names]
    shared = in_one_process(works)
    assert [[recipe.short for recipe in recipes] for recipes in shared] == [
        ["gguf-q4_k_m", "gguf-q8_0"],
        ["gguf-f16", "gguf-bf16"],
        ["bfloat16"],
    ]
