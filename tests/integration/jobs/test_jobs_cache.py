"""Runs that share a cache: made once, copied by the others, awaited while somebody makes it, made anew where
it is damaged."""

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from job_runs import standing_step

from quantize.artifact.artifact import Artifact
from quantize.results import read_results

JOB = (
    "models: [checkpoint]\nrecipes: [gguf-f16, gguf-q8_0]\nverify: none\nreport: false\nresources: "
    "{threads: 1}\n"
)


pytestmark = pytest.mark.usefixtures("own_rates")


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(num_hidden_layers=1)


def write_job(folder: Path, checkpoint: Path, text: str = JOB) -> Path:
    """A job of another user: the same bytes of the checkpoint under another path."""
    folder.mkdir()
    (folder / "checkpoint").mkdir()
    for path in checkpoint.iterdir():
        (folder / "checkpoint" / path.name).hardlink_to(path)
    (folder / "job.yaml").write_text(text, encoding="utf-8")
    return folder / "job.yaml"


def start(job: Path, cache: Path | str, *more: str) -> subprocess.Popen[str]:
    arguments = ["run", str(job), "-o", str(job.parent / "run"), "--cache", str(cache), *more]
    return subprocess.Popen(
        [sys.executable, "-m", "quantize.cli", *arguments], stderr=subprocess.PIPE, text=True
    )


def run(job: Path, cache: Path | str, *more: str) -> str:
    process = start(job, cache, *more)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return said


def digests(job: Path) -> dict[str, str]:
    return {
        path.parent.name: Artifact.load(path.parent).digest
        for path in (job.parent / "run").rglob("manifest.json")
    }


def test_made_once_copied_after_and_made_anew_where_damaged(checkpoint: Path, tmp_path: Path) -> None:
    cache, mine, yours = (
        tmp_path / "cache",
        write_job(tmp_path / "mine", checkpoint),
        write_job(tmp_path / "yours", checkpoint),
    )
    assert "2 done" in run(mine, cache)
    assert "2 taken from the cache" in run(yours, cache)
    assert digests(mine) == digests(yours)
    artifact = Artifact.load(yours.parent / "run" / "artifacts" / "checkpoint" / "gguf-q8_0")
    artifact.check_files()
    assert artifact.manifest.source.id == str(yours.parent / "checkpoint")
    assert [subject.status for subject, _ in read_results(yours.parent / "run")] == ["ok", "ok"]
    assert "2 already done" in run(yours, cache)

    damaged = max((cache / "steps").rglob("*.gguf"), key=lambda path: path.stat().st_size)
    data = bytearray(damaged.read_bytes())
    data[-1000] ^= 4
    damaged.write_bytes(data)
    third = write_job(tmp_path / "third", checkpoint)
    said = run(third, cache)
    assert "is damaged" in said
    assert "1 done, 1 taken from the cache" in said
    assert digests(third) == digests(mine)
    assert len(list((cache / "quarantine").iterdir())) == 1
    assert "2 taken from the cache" in run(write_job(tmp_path / "fourth", checkpoint), cache)


def test_the_second_waits_for_the_first_and_goes_on_where_it_dies(checkpoint: Path, tmp_path: Path) -> None:
    cache, mine, yours = (
        tmp_path / "cache",
        write_job(tmp_path / "mine", checkpoint),
        write_job(tmp_path / "yours", checkpoint),
    )
    one = ("--set", "recipes=[gguf-q4_k_m]")
    first = start(mine, cache, *one)
    step = standing_step(first)
    second = start(yours, cache, *one)
    assert second.stderr is not None
    while "another run is making it" not in (line := second.stderr.readline()):
        assert line, "it did not wait"
    first.kill()
    with contextlib.suppress(psutil.NoSuchProcess):  # it may stand before it has asked to die with its parent
        step.resume()
    _, said = second.communicate(timeout=120)
    assert second.returncode == 0, said
    assert "1 done" in said
    assert "1 taken from the cache" in run(mine, cache, *one)
    assert digests(mine) == digests(yours)


def test_a_cache_over_s3_and_its_server_gone_in_the_middle(checkpoint: Path, tmp_path: Path, s3: Any) -> None:
    mine, yours, third = (write_job(tmp_path / name, checkpoint) for name in ("mine", "yours", "third"))
    assert "2 done" in run(mine, "s3://bucket/cache")
    assert "2 taken from the cache" in run(yours, "s3://bucket/cache")
    assert digests(mine) == digests(yours)
    process = start(third, "s3://bucket/cache", "--set", "recipes=[gguf-q8_0, gguf-q5_0, gguf-q4_0]")
    assert process.stderr is not None
    while "taken from the cache" not in (line := process.stderr.readline()):
        assert line, "nothing was taken from the cache"
    s3.stop()
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert said.count("this run goes on without it") == 1
    assert "2 done, 1 taken from the cache" in said
    assert "Traceback" not in said


@pytest.mark.long
def test_the_reference_runs_once_and_its_text_is_tokenized_once(checkpoint: Path, tmp_path: Path) -> None:
    text = (
        JOB.replace("[gguf-f16, gguf-q8_0]", "[]")
        + "evaluate: {text: held-out, tokens: 600, metrics: [divergence]}\n"
    )
    cache, mine, yours = (
        tmp_path / "cache",
        write_job(tmp_path / "a", checkpoint, text),
        write_job(tmp_path / "b", checkpoint, text),
    )
    run(mine, cache)
    run(yours, cache)
    made, copied = (
        {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("*-*/*"))}
        for folder in (job.parent / "run" / "cache" for job in (mine, yours))
    )
    assert {name.partition("-")[0] for name in made} == {"reference", "tokens"}
    assert copied == made
    assert "stored logits" in (yours.parent / "run" / "logs" / "eval.checkpoint.reference.log").read_text()
