"""The job runner with real steps: what is done stays done, a failure costs its row, kill -9 at any moment
loses nothing."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from job_runs import standing_step, until

from jobs.records import Records
from quantize.artifact.artifact import Artifact
from quantize.methods.registry import parse_recipe
from quantize.results import read_results

JOB = """\
models: [checkpoint]
recipes: [{recipes}]
verify: none
report: false
resources: {{threads: 1}}
"""
MADE = ["gguf-f16", "gguf-q8_0", "gguf-q4_0"]
UNFIT = "gptq-int4:group_size=128"  # of a checkpoint whose matrices have other numbers of inputs


pytestmark = pytest.mark.usefixtures("own_rates")


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    """One weight is too large for float16; everything else can be made, but GPTQ's groups of 128 do not
    divide 320."""
    folder = make_checkpoint(intermediate_size=320, num_hidden_layers=1)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    header = int.from_bytes(data[:8], "little")
    offset = json.loads(data[8 : 8 + header])["model.norm.weight"]["data_offsets"][0]
    data[8 + header + offset : 8 + header + offset + 2] = (
        (np.float32(1e6).view(np.uint32) >> 16).astype("<u2").tobytes()
    )
    path.write_bytes(data)
    return folder


def write_job(folder: Path, checkpoint: Path, recipes: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "checkpoint").symlink_to(checkpoint)
    path = folder / "job.yaml"
    path.write_text(JOB.format(recipes=", ".join(recipes)), encoding="utf-8")
    return path


def command(job: Path, run: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "quantize.cli", "run", str(job), "-o", str(run), *more]


def run_job(job: Path, run: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(job, run, *more), capture_output=True, text=True, timeout=1200, check=False)


def tree(run: Path) -> dict[str, str]:
    """What a run has made: digest of every artifact, contents of every results file but for measured times
    and memory (none of a type that was made together with others)."""
    artifacts = {
        str(path.parent.relative_to(run)): Artifact.load(path.parent).digest
        for path in run.rglob("manifest.json")
    }
    results = {
        path.name: re.sub(r'"made_\w+": ([\d.]+|null)', "", path.read_text(encoding="utf-8"))
        for path in (run / "results").glob("*.json")
    }
    return artifacts | results


def leftovers(run: Path) -> list[Path]:
    """Files and folders that no finished run has."""
    return [path for path in run.rglob(".*") if path.name not in (".lock", ".work")] + list(
        (run / ".work").iterdir()
    )


def steps_of(pid: int) -> Iterator[psutil.Process]:
    """Step processes that a runner, living or dead, started."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "quantize.process" in line and str(pid) in line:
            yield process


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> tuple[Path, Path, Any]:
    folder = tmp_path_factory.mktemp("jobs")
    job = write_job(folder, checkpoint, [*MADE, "float16", UNFIT])
    return job, folder / "run", run_job(job, folder / "run", "--json")


def test_a_failed_step_and_an_impossible_one_cost_their_rows_only(finished: tuple[Path, Path, Any]) -> None:
    _job, run, done = finished
    assert done.returncode == 1, done.stderr
    rows = {subject.recipe: subject for subject, _ in read_results(run)}
    assert {recipe: rows[recipe].status for recipe in rows} == {
        **dict.fromkeys(MADE, "ok"),
        "float16": "failed",
        UNFIT: "unsupported",
    }
    assert "float16's largest value" in rows["float16"].reason
    assert "128" in rows[UNFIT].reason
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["failed"] == ["convert:checkpoint:float16"]
    assert leftovers(run) == []
    for recipe in MADE:
        artifact = Artifact.load(run / "artifacts" / "checkpoint" / recipe)
        artifact.check_files()
        assert rows[recipe].digest == artifact.digest
        assert rows[recipe].engine == artifact.manifest.engine
    # not of those that one process made together
    alone = [rows[recipe] for recipe in MADE if rows[recipe].made_s is not None]
    assert alone
    assert all((row.made_s or 0) > 0.1 and (row.made_peak_bytes or 0) > 20 << 20 for row in alone)


def test_run_again_does_only_what_is_missing(finished: tuple[Path, Path, Any], tmp_path: Path) -> None:
    job, first, _ = finished
    run = tmp_path / "run"
    shutil.copytree(first, run)
    before = tree(run)
    damaged = next((run / "artifacts" / "checkpoint" / "gguf-q8_0").glob("*.gguf"))
    with open(damaged, "r+b") as file:
        file.truncate(1000)
    again = run_job(job, run)
    assert again.returncode == 1
    assert again.stderr.count(": already done") == 2
    assert again.stderr.count("done in") == 1
    assert tree(run) == before


def test_strict_refuses_before_anything_runs(finished: tuple[Path, Path, Any], tmp_path: Path) -> None:
    done = run_job(finished[0], tmp_path / "run", "--strict")
    assert done.returncode == 2
    assert "gptq-int4" in done.stderr
    assert not (tmp_path / "run").exists()


def test_what_cannot_fit_is_refused_before_anything_runs(
    finished: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    done = run_job(finished[0], tmp_path / "run", "--set", "resources.memory=10MB")
    assert done.returncode == 2
    assert "memory" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_step_that_takes_too_long_is_stopped(checkpoint: Path, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", checkpoint, ["gguf-f16"])
    done = run_job(job, tmp_path / "run", "--set", "resources.time_limit_minutes=0.002")
    assert done.returncode == 1
    assert "took longer than its limit" in read_results(tmp_path / "run")[0][0].reason
    assert leftovers(tmp_path / "run") == []


def start(job: Path, run: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(command(job, run), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_two_runners_on_one_folder(checkpoint: Path, tmp_path: Path) -> None:
    job, run = write_job(tmp_path / "job", checkpoint, ["gguf-f16"]), tmp_path / "run"
    first = start(job, run)
    step = standing_step(first)
    second = run_job(job, run)
    step.resume()
    assert second.returncode == 2
    assert f"process {first.pid} is running a job here" in second.stderr
    assert first.wait(120) == 0


def test_ctrl_c_once_finishes_the_running_step(checkpoint: Path, tmp_path: Path) -> None:
    job, run = write_job(tmp_path / "job", checkpoint, MADE), tmp_path / "run"
    process = start(job, run)
    step = standing_step(process)
    process.send_signal(signal.SIGINT)
    until(lambda: "the running step" in process.stderr.readline(), process)
    step.resume()
    assert process.wait(120) == 130, process.stderr.read()
    assert [path.name for path in (run / "artifacts" / "checkpoint").iterdir()] == MADE[:1]


def test_ctrl_c_twice_stops(checkpoint: Path, tmp_path: Path) -> None:
    job, run = write_job(tmp_path / "job", checkpoint, MADE), tmp_path / "run"
    process = start(job, run)
    standing_step(process)
    process.send_signal(signal.SIGINT)
    until(lambda: "the running step" in process.stderr.readline(), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    assert list(steps_of(process.pid)) == []


def recipes_at_work(pid: int) -> dict[int, str]:
    """Process id -> recipe, of the conversions that a runner has started."""
    found = {}
    for step in steps_of(pid):
        with contextlib.suppress(psutil.Error, ValueError):
            line = step.cmdline()
            found[step.pid] = line[line.index("--to") + 1]
    return found


def kill_until_done(
    job: Path, run: Path, rng: random.Random, kills: int, wall_s: dict[str, float]
) -> list[str]:
    """Start the job, kill -9 its runner or a step at a random moment of a step, again and again, until it is
    through.

    ``wall_s``: recipe -> what it takes undisturbed. Returns which recipe was at work at each kill, or
    nothing.
    """
    killed = []
    while len(killed) < kills:
        process = start(job, run)
        if rng.random() < 0.1:
            time.sleep(rng.uniform(0.0, 1.0))
        else:
            while process.poll() is None and not (working := recipes_at_work(process.pid)):
                time.sleep(0.005)
            time.sleep(
                rng.uniform(0.0, 1.5 * wall_s[next(iter(working.values()))])
                if process.poll() is None
                else 0.0
            )
        working = recipes_at_work(process.pid)
        if process.poll() is not None:
            break
        victim = rng.choice([process.pid, *working])
        os.kill(victim, signal.SIGKILL)
        killed.append(next(iter(working.values()), "nothing"))
        if victim == process.pid:
            process.wait(10)
            deadline = time.monotonic() + 5
            while list(steps_of(process.pid)):
                assert time.monotonic() < deadline, "a step outlived its runner"
                time.sleep(0.01)
        else:
            process.wait(1200)
    return killed


LONG = [pytest.mark.long, pytest.mark.timeout(4 * 3600)]
HEAVY = ["gguf-q4_k_m", "quanto-int8", "gptq-int4"]


@pytest.mark.parametrize(
    ("seed", "kills", "recipes"),
    [(1, 3, MADE), pytest.param(2, 150, MADE, marks=LONG), pytest.param(1000, 50, HEAVY, marks=LONG)],
)
def test_killed_at_random_moments_it_ends_as_if_undisturbed(
    checkpoint: Path, tmp_path: Path, seed: int, kills: int, recipes: list[str]
) -> None:
    print(f"seed {seed}, {kills} kills, {recipes}")
    job = write_job(tmp_path / "job", checkpoint, recipes)
    undisturbed = run_job(job, tmp_path / "undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    expected = tree(tmp_path / "undisturbed")
    wall_s = {record.id.split(":")[-1]: record.wall_s for record in Records(tmp_path / "undisturbed").all()}
    wall_s = {recipe: wall_s[parse_recipe(recipe).slug] for recipe in recipes}
    rng = random.Random(seed)
    hit: Counter[str] = Counter()
    attempt = 0
    # Of many kills, some hit every recipe: a machine whose speed has changed since the undisturbed run needs
    # more of them.
    while (missing := kills - hit.total() + hit["nothing"]) > 0 or (
        kills >= 50 and not set(recipes) <= set(hit)
    ):
        run = tmp_path / f"killed{attempt}"
        hit.update(kill_until_done(job, run, rng, max(10, missing), wall_s))
        final = run_job(job, run)
        assert final.returncode == 0, final.stderr
        assert tree(run) == expected
        assert leftovers(run) == []
        attempt += 1
    print(f"killed {attempt} runs, at work: {dict(hit)}")


def test_gguf_types_share_one_reading_and_what_is_there_is_left_out(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    made = ["gguf-q4_0", "gguf-q8_0", "gguf-q6_k"]
    job = write_job(tmp_path, make_checkpoint(num_hidden_layers=1), made)
    run = tmp_path / "run"
    first = run_job(job, run)
    assert first.returncode == 0, first.stderr
    assert "convert checkpoint gguf-q4_0: ... and 2 more from the same reading" in first.stderr
    assert first.stderr.count("done with convert checkpoint gguf-q4_0") == 2
    assert leftovers(run) == []
    before = tree(run)
    for recipe in made[1:]:
        shutil.rmtree(run / "artifacts" / "checkpoint" / recipe)
    again = run_job(job, run)
    assert again.returncode == 0, again.stderr
    assert "gguf-q4_0: already done" in again.stderr
    assert "convert checkpoint gguf-q8_0: ... and 1 more from the same reading" in again.stderr
    assert tree(run) == before
    assert run_job(job, run).stderr.count(": already done") == 3


def test_a_process_that_makes_several_and_is_killed_costs_none(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    job = write_job(tmp_path, make_checkpoint(num_hidden_layers=1), ["gguf-q4_0", "gguf-q8_0"])
    with subprocess.Popen(command(job, tmp_path / "run"), stderr=subprocess.PIPE, text=True) as process:
        step = until(lambda: next(iter(steps_of(process.pid)), None), process)
        step.kill()
        _, said = process.communicate()
    assert process.returncode == 0, said
    assert "gguf-q4_0: killed by SIGKILL" in said
    assert "once more, by itself" in said
    assert leftovers(tmp_path / "run") == []
    assert len(tree(tmp_path / "run")) > 1
