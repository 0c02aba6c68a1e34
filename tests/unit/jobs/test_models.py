"""Models of a job: a Hub model is pinned to the commit that was planned, an adapter makes a model of its
own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_every_step_opens_the_commit_that_was_planned(
    tmp_path: Path, demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--org--name"
    shutil.copytree(demo_checkpoint, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (tmp_path / "job.yaml").write_text("models: [org/name]\nrecipes: [float32]\nbenchmark: {}\n")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = (
        "import json, sys; from pathlib import Path; from jobs.load import load_job; "
        "from jobs.plan import build_plan; path = Path(sys.argv[1]); "
        "print(json.dumps({s.id: s.arguments[1] for s in build_plan(load_job(path), path.parent).steps}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "job.yaml")], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {
        "convert:name:float32": f"org/name@{COMMIT}",
        "bench:name:reference": f"org/name@{COMMIT}",
        "bench:name:float32": "artifacts/name/float32",
        "report": ".",
    }


@pytest.mark.parametrize(
    ("typed", "name"), [("..", "model"), (".", "inner"), ("../../model/", "model"), ("../../a:b", "a-b")]
)
def test_a_models_name_is_one_plain_part_of_a_path(
    typed: str, name: str, tmp_path: Path, demo_checkpoint: Path
) -> None:
    from jobs.load import load_job
    from jobs.plan import build_plan

    for folder in ("model", "model/inner", "a:b"):
        shutil.copytree(demo_checkpoint, tmp_path / folder)
    job = tmp_path / "model" / "inner" / "job.yaml"
    job.write_text(f"models: ['{typed}']\nrecipes: [float32]\nreport: false\n")
    plan = build_plan(load_job(job), job.parent)
    assert [str(step.output) for step in plan.steps] == [f"artifacts/{name}/float32"]
