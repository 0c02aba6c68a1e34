"""A method and a format of somebody else's, in a module of their own: every command takes them, and no other
file knows of them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quantize.artifact.artifact import Artifact
from quantize.cli import cli
from quantize.methods.registry import METHODS, method, presets

MODULE = '''
"""Every matrix rounded to steps of a fraction of its row's largest value, stored as float32."""

import numpy as np
from typing import Literal

from quantize.checkpoint.tensors import Entry, StoredTensors, write_config, write_folder
from quantize.dtypes import FLOATS
from quantize.engines.base import Conversion, Engine
from quantize.errors import Unsupported
from quantize.formats.folder import FolderFormat
from quantize.methods.base import Method, Work
from quantize.recipe import Recipe


class CoarseRecipe(Recipe):
    presets = {"coarse-16": {"steps": 16}, "coarse-64": {"steps": 64}}

    method: Literal["coarse"] = "coarse"
    steps: int = 64


class CoarseFormat(FolderFormat):
    hub_tag = "coarse"
    value_rounding = None

    def __init__(self, steps):
        self.steps = steps

    def entries(self, checkpoint, name, quantized):
        yield name, "F32", checkpoint.tensors[name].shape

    def quantized(self, stage):
        stored, found = StoredTensors(stage), {}
        for name in stored:
            values = stored.float32(name)
            if values.ndim == 2:
                levels = max(len(np.unique(row)) for row in values)
                if levels <= 2 * self.steps + 1:
                    found[name] = f"{self.steps} steps"
        return found

    def fits(self, kind):
        return kind == f"{self.steps} steps"

    def dequantize(self, stage, checkpoint):
        stored = StoredTensors(stage)
        for name in stored:
            yield name, stored.float32(name)


class Rounder(Engine):
    libraries = ("numpy",)


class Coarse(Method):
    recipe_class = CoarseRecipe
    format = CoarseFormat
    engine = Rounder()
    summary = "rounded to steps of each row's largest value"
    planned = 0

    def work(self, held, recipe):
        Coarse.planned += 1
        if recipe.steps < 2:
            raise Unsupported(f"{held.checkpoint.source}: {recipe.short}: needs two steps or more")
        tensors = held.checkpoint.tensors.items()
        expected = frozenset(n for n, info in tensors if len(info.shape) == 2 and info.dtype in FLOATS)
        return CoarseWork(held, recipe, CoarseFormat(recipe.steps), expected)


class CoarseWork(Work):
    def write(self, stage, run, calibration):
        checkpoint = self.checkpoint

        def data(name):
            values = checkpoint.read_float32(name)
            if name not in self.expected:
                return values
            scale = np.abs(values).max(axis=1, keepdims=True) / self.recipe.steps
            return (np.round(values / np.maximum(scale, 1e-30)) * scale).astype(np.float32)

        entries = [Entry(name, "F32", info.shape) for name, info in checkpoint.tensors.items()]
        weight_bytes = write_folder(stage, entries, data)
        write_config(stage, {**checkpoint.config, "dtype": "float32"})
        return Conversion(weight_bytes, engine=Coarse.engine.label, libraries=Coarse.engine.libraries)
'''


@pytest.fixture
def coarse(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As an entry point of ``quantwright.methods`` registers it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "coarse_rounding.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(METHODS, "coarse", "coarse_rounding:Coarse")
    presets.cache_clear()
    yield
    presets.cache_clear()
    method.cache_clear()


def last_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    """What the command prints with ``--json``."""
    capsys.readouterr()
    assert not cli.main([*arguments, "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found if isinstance(found, list) else [found]


@pytest.mark.usefixtures("coarse")
def test_every_command_takes_it(
    make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, run = str(make_checkpoint()), str(tmp_path / "made"), str(tmp_path / "run")
    rows = {row["recipe"]: row for row in last_line(capsys, "methods")}
    assert rows["coarse-64"]["available"] is True
    assert rows["coarse-64"]["needs"] == []
    assert last_line(capsys, "check", source, "--to", "coarse:steps=1")[0]["possible"] is False
    planned = json.dumps(last_line(capsys, "plan", source, "--to", "coarse-64"))
    assert "coarse-64" in planned
    before = type(method("coarse")).planned  # type: ignore[attr-defined]
    last_line(capsys, "convert", source, "--to", "coarse-64", "-o", out, "--device", "cpu")
    assert type(method("coarse")).planned == before + 1, "a conversion plans once"  # type: ignore[attr-defined]
    artifact = Artifact.load(Path(out))
    manifest = artifact.manifest
    assert manifest.verification.level == "full"
    assert manifest.verification.passed
    assert manifest.engine.startswith("quantwright ")
    assert manifest.recipe == {"method": "coarse", "steps": 64}
    text = tmp_path / "text.txt"
    text.write_text("The river had risen in the night, and the fields were under water. " * 60)
    measured = last_line(
        capsys, "eval", out, "--reference", source, "--text", str(text), "--tokens", "600",
        "--protocol", "gptq-100", "--device", "cpu", "-o", run,
    )  # fmt: skip
    values = {row["metric"]: row["value"] for row in measured}
    assert 0 < float(str(values["kl_mean"])) < 0.1
    report = json.dumps(last_line(capsys, "report", run))
    assert "coarse-64" in report
    last_line(
        capsys, "publish", out, "--repo", "me/small-coarse", "--results", run, "--base-model", "org/small",
        "--license", "mit", "--dry-run", "-o", str(tmp_path / "published"),
    )  # fmt: skip
    card = (tmp_path / "published" / "README.md").read_text(encoding="utf-8")
    assert "- coarse\n" in card
    assert "coarse-64" in card
