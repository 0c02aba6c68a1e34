"""Several recipes of one model: each artifact has the bytes that it has alone, and its manifest says what was
shared."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantize import Artifact
from quantize.calibration import kept_moments as cache
from quantize.calibration.collectors import Moment
from quantize.calibration.importance import source_moments
from quantize.calibration.kept_moments import keep_moments, kept_moments, moments_files
from quantize.calibration.layer_pass import BATCH_TOKENS
from quantize.calibration.texts import held_out_text
from quantize.cli import cli
from quantize.conversion import convert
from quantize.engines.native import awq
from quantize.recipe import CalibrationOptions, RunOptions
from quantize.sources.opening import open_checkpoint

AWQ, IMATRIX = "awq-int4:group_size=64", "gguf-q4_k_m:imatrix=auto"
CPU = RunOptions(device="cpu", threads=1, progress=False)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "held-out.txt"
    path.write_text(held_out_text()[:100_000])
    return path


@pytest.fixture(scope="module")
def model(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(hidden_size=128, intermediate_size=256)


def made(model: Path, to: str, out: Path, text: Path) -> dict[str, str]:
    """sha256 of each file of the artifact."""
    options = CalibrationOptions(source=str(text), tokens=12_288, sequence_length=256)
    artifact = convert(model, to, out, calibration=options, run=CPU, verify="none")
    return {name: entry.sha256 for name, entry in artifact.manifest.files.items()}


def shared(folder: Path) -> list[str]:
    found: list[str] = Artifact.load(folder).manifest.details.get("shared", [])
    return found


def test_after_another_as_alone(model: Path, text: Path, tmp_path: Path, own_cache: Path) -> None:
    """Of the 48 windows, 32 are AWQ's; another type of the same text has all sums in the end."""
    alone = made(model, IMATRIX, tmp_path / "alone", text)
    assert not shared(tmp_path / "alone")
    shutil.rmtree(own_cache)
    made(model, AWQ, tmp_path / "awq", text)
    assert not shared(tmp_path / "awq")
    assert made(model, IMATRIX, tmp_path / "after", text) == alone
    (said,) = shared(tmp_path / "after")
    assert said.startswith("sums of squares over 8,192 of 12,288 calibration tokens: of an earlier")
    made(model, "gguf-q3_k_m:imatrix=auto", tmp_path / "third", text)
    assert "over 12,288 of 12,288" in shared(tmp_path / "third")[0]


@pytest.mark.long
def test_on_one_command_line(model: Path, text: Path, tmp_path: Path, own_cache: Path) -> None:
    """The imatrix recipe is given first: AWQ goes before it all the same."""
    alone = {"gguf": made(model, IMATRIX, tmp_path / "gguf", text)}
    shutil.rmtree(own_cache)
    alone["awq"] = made(model, AWQ, tmp_path / "awq", text)
    shutil.rmtree(own_cache)
    options = ["--calibration", str(text), "--calibration-tokens", "12288", "--calibration-length", "256"]
    options += ["--verify", "none", "--device", "cpu", "--threads", "1"]
    arguments = ["convert", str(model), "--to", f"{IMATRIX},{AWQ}", "-o", str(tmp_path / "both"), *options]
    assert not cli.main(arguments, standalone_mode=False)
    together = {path.name.partition("-")[0]: Artifact.load(path) for path in (tmp_path / "both").iterdir()}
    for name, files in alone.items():
        found = together[name].manifest.files
        assert {file: entry.sha256 for file, entry in found.items()} == files
    assert "over 8,192 of 12,288" in together["gguf"].manifest.details["shared"][0]


def test_an_interrupted_awq_leaves_no_sums(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended in the second layer, then gone on with: its sums lack the layer before."""
    real, calls = awq._solve, []

    def stops(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as changed:
        changed.setattr(awq, "_solve", stops)
        with pytest.raises(KeyboardInterrupt):
            made(model, AWQ, tmp_path / "awq", text)
    assert not (tmp_path / "awq").exists()
    made(model, AWQ, tmp_path / "awq", text)
    assert any("interrupted" in note.what for note in Artifact.load(tmp_path / "awq").manifest.notes)
    assert not moments_files()


def test_sums_go_on_from_those_of_other_rows(model: Path) -> None:
    """Bit by bit those of one pass over both, where the first are whole batches."""
    checkpoint = open_checkpoint(model)
    ids = np.random.default_rng(1).integers(0, 500, (20, 256))
    split = BATCH_TOKENS // 256
    first = source_moments(checkpoint, ids[:split])
    keep_moments({"a": 1}, first)
    kept = kept_moments({"a": 1})
    assert kept is not None
    after, whole = source_moments(checkpoint, ids[split:], before=kept), source_moments(checkpoint, ids)
    assert after.keys() == whole.keys()
    for name, found in whole.items():
        assert after[name][0].count == found[0].count == ids.size
        assert np.array_equal(after[name][0].sums, found[0].sums), name


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST", 3)
    monkeypatch.setattr(cache, "MOST_BYTES", 5000)

    def of(columns: int) -> dict[str, dict[int, Moment]]:
        return {"x": {0: Moment(np.ones(columns), 7)}}

    for number in range(5):
        keep_moments({"n": number}, of(10))
    assert len(moments_files()) == 3
    found = kept_moments({"n": 4})
    assert found is not None
    assert (found["x"][0].count, found["x"][0].sums.tolist()) == (7, [1.0] * 10)
    assert kept_moments({"n": 0}) is None
    keep_moments({"large": 1}, of(1000))
    assert kept_moments({"large": 1}) is None
    keep_moments({"half": 1}, of(550))
    keep_moments({"half": 2}, of(550))
    assert len(moments_files()) == 1
    moments_files()[0].write_bytes(b"damaged")
    assert kept_moments({"half": 2}) is None
