"""What can go wrong around a job ends in a clear message or a right result: full disk, memory, damaged
records, odd clocks."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from job_runs import standing_step

from jobs.child import Child
from jobs.records import Records
from quantize.files import user_cache
from quantize.results import read_results

JOB = "models: [checkpoint]\nrecipes: [gguf-f16]\nverify: none\nreport: false\nresources: {threads: 1}\n"


pytestmark = pytest.mark.usefixtures("own_rates")


@pytest.fixture
def job(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    (tmp_path / "checkpoint").symlink_to(make_checkpoint(num_hidden_layers=1))
    path = tmp_path / "job.yaml"
    path.write_text(JOB, encoding="utf-8")
    return path


def quantwright(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quantize.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_costs_the_step_and_leaves_nothing(job: Path, small_disk: Path) -> None:
    run, filler = small_disk / "run", small_disk / "filler"
    process = subprocess.Popen(
        [sys.executable, "-m", "quantize.cli", "run", str(job), "-o", str(run)],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list((run / "steps").glob("*.json")):  # the plan has found room enough by now
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with open(filler, "wb") as file:
        file.write(bytes(15 << 20))
    assert process.wait(120) == 1
    ((subject, _),) = read_results(run)
    assert subject.status == "failed"
    assert "disk is full" in subject.reason
    assert list((run / "artifacts").rglob("*.gguf")) == []
    filler.unlink()
    assert quantwright("run", job, "-o", run).returncode == 0
    assert read_results(run)[0][0].status == "ok"


def test_too_little_disk_is_known_before(job: Path, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(15 << 20))
    done = quantwright("run", job, "-o", small_disk / "run")
    assert done.returncode == 2
    assert "of disk, but" in done.stderr
    assert not (small_disk / "run").exists()


def test_an_output_that_cannot_be_written(job: Path) -> None:
    done = quantwright("run", job, "-o", job / "run")  # under a file
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def start(job: Path, run: Path, *more: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    """A run and its first step, which stands still."""
    process = subprocess.Popen(
        [sys.executable, "-m", "quantize.cli", "run", str(job), "-o", str(run), *more],
        stderr=subprocess.PIPE,
        text=True,
    )
    return process, standing_step(process)


def test_a_disk_without_a_byte_left_ends_the_run_in_one_line(job: Path, small_disk: Path) -> None:
    """Not even the runner can write down what happened."""
    run, filler = small_disk / "run", small_disk / "filler"
    process, step = start(job, run)
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    step.resume()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the disk is full" in said.splitlines()[-1]
    assert "Traceback" not in said
    filler.unlink()
    assert quantwright("run", job, "-o", run).returncode == 0
    assert read_results(run)[0][0].status == "ok"


def test_a_disk_that_may_only_be_read(job: Path, small_disk: Path) -> None:
    assert quantwright("run", job, "-o", small_disk / "run").returncode == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = quantwright("run", job, "-o", small_disk / "run")
    assert done.returncode == 2
    assert "cannot be written (Read-only file system); choose another -o" in done.stderr
    status = quantwright("status", small_disk / "run", "--json")
    assert json.loads(status.stdout.splitlines()[-1])["steps"][0]["status"] == "done"


def test_a_step_that_hangs_is_stopped(job: Path, tmp_path: Path) -> None:
    process, step = start(job, tmp_path / "run", "--set", "resources.time_limit_minutes=0.05")
    assert process.wait(60) == 1
    assert not step.is_running()
    assert "took longer than its limit" in read_results(tmp_path / "run")[0][0].reason
    assert quantwright("run", job, "-o", tmp_path / "run").returncode == 0


def test_a_step_over_its_memory_limit_is_stopped(tmp_path: Path) -> None:
    child = Child(["methods"], tmp_path, tmp_path / "log", tmp_path / "out")
    while child.poll() is None:
        child.enforce(20 << 20, None)
        time.sleep(0.01)
    assert "more than its memory limit of 0.02 GiB" in child.killed_for
    assert child.poll() == -9


def test_damaged_records_and_odd_clocks_change_nothing(job: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert quantwright("run", job, "-o", run).returncode == 0
    (record,) = Records(run).all()
    record.started_at = "2999-01-01T00:00:00+00:00"
    record.wall_s = -5.0
    Records(run).write("convert.checkpoint.gguf-f16", record)
    for path in run.rglob("*"):
        if not path.is_symlink():
            os.utime(path, (4e9, 4e9))
    again = quantwright("run", job, "-o", run)
    assert again.returncode == 0
    assert "1 already done" in again.stderr
    status = quantwright("status", run, "--json")
    assert json.loads(status.stdout.splitlines()[-1])["steps"][0]["status"] == "done"
    # A crash of the machine may leave half a record: the step is then done again, and only that.
    (run / "steps" / "convert.checkpoint.gguf-f16.json").write_text('{"id": "conv')
    (user_cache() / "hashes.json").write_text("{")
    again = quantwright("run", job, "-o", run)
    assert again.returncode == 0
    assert "1 done" in again.stderr


def test_clean_removes_what_no_job_refers_to_and_asks_first(job: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert quantwright("run", job, "-o", run).returncode == 0
    kept = run / "artifacts" / "checkpoint" / "gguf-f16"
    assert "nothing to remove" in quantwright("clean", run).stdout
    job.write_text(JOB.replace("gguf-f16", "gguf-q8_0"), encoding="utf-8")
    assert quantwright("run", job, "-o", run).returncode == 0
    asked = subprocess.run(
        [sys.executable, "-m", "quantize.cli", "clean", str(run)],
        input="n\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert "gguf-f16" in asked.stdout
    assert kept.is_dir()
    assert quantwright("clean", run, "--yes").returncode == 0
    assert not kept.exists()
    assert (run / "artifacts" / "checkpoint" / "gguf-q8_0").is_dir()
    assert [subject.recipe for subject, _ in read_results(run)] == ["gguf-q8_0"]
    assert quantwright("clean", job.parent).returncode == 2


def test_init_writes_a_job_and_never_over_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert quantwright("init", path).returncode == 0
    assert "models:" in path.read_text(encoding="utf-8")
    again = quantwright("init", path)
    assert again.returncode == 2
    assert "--force" in again.stderr
