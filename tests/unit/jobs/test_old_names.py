"""``limit`` was tokens and ``task_limit`` items: old job files mean what they meant, are told today's names,
and find what they have done."""

from pathlib import Path
from typing import Any

import pytest

from jobs.load import load_job
from jobs.plan import build_plan
from jobs.steps.step import Step
from quantize.errors import BadInput


def steps(folder: Path, demo: Path, evaluate: str) -> dict[str, Step]:
    path = folder / "job.yaml"
    path.write_text(
        f"models: [{{source: {demo}, name: m}}]\nrecipes: [quanto-int8]\nreport: false\n"
        f"resources: {{threads: 1, device: cpu}}\nevaluate: {evaluate}\n"
    )
    return {step.id: step for step in build_plan(load_job(path), folder).steps}


#: old spelling, today's, what the warning says
SPELLINGS = [
    ("{limit: 2000}", "{tokens: 2000}", "write tokens: 2000 in place of limit,"),
    (
        "{text: held-out, tasks: [held-out], limit: 2000, task_limit: 7}",
        "{text: held-out, tasks: [held-out], tokens: 2000, limit: 7}",
        "write tokens: 2000 in place of limit, limit: 7 in place of task_limit,",
    ),
    (
        "{tasks: held-out, task_limit: 7}",
        "{tasks: held-out, limit: 7}",
        "write limit: 7 in place of task_limit,",
    ),
    (
        "{text: held-out, tasks: held-out, tokens: 2000, task_limit: 7}",
        "{text: held-out, tasks: held-out, tokens: 2000, limit: 7}",
        "write limit: 7 in place of task_limit,",
    ),
]


@pytest.mark.parametrize(("old", "new", "said"), SPELLINGS)
def test_both_spellings_are_one_step(
    tmp_path: Path, demo_checkpoint: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    before = steps(tmp_path, demo_checkpoint, old)
    (warning,) = capsys.readouterr().err.splitlines()
    assert "job.yaml:5: evaluate: " in warning
    assert said in warning
    after = steps(tmp_path, demo_checkpoint, new)
    assert capsys.readouterr().err == ""
    assert {id: (step.inputs, step.arguments) for id, step in before.items()} == {
        id: (step.inputs, step.arguments) for id, step in after.items()
    }


def test_keys_name_things_as_they_did_before(tmp_path: Path, demo_checkpoint: Path) -> None:
    """Written down when the old names were in use: what jobs have done then need not be done again."""
    section = (
        "{text: held-out, tokens: 2000, tasks: [held-out], limit: 7, protocol: 'gptq-64,exl3-64', "
        "metrics: [divergence]}"
    )
    inputs: dict[str, Any] = dict(steps(tmp_path, demo_checkpoint, section)["eval:m:quanto-int8"].inputs)
    del inputs["held_out"]  # differs by release of Python
    assert inputs == {
        "metrics": ["divergence"], "protocol": "gptq-64,exl3-64", "ids": "source", "limit": 2000,
        "task_limit": 7, "num_fewshot": None, "apply_chat_template": False, "chat_template": None,
        "allow_code_execution": False, "allow_task_code": False, "generate": None, "floors": True,
        "weights_only": "sample", "runtime": None, "tasks": ["held-out"],
        "device": "cpu", "dtype": "auto", "threads": 1,
    }  # fmt: skip


def test_limit_with_a_text_and_tasks_is_items_and_says_so(
    tmp_path: Path, demo_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    section = "{text: held-out, tasks: [held-out], limit: 50%s}"
    arguments = list(steps(tmp_path, demo_checkpoint, section % "")["eval:m:reference"].arguments)
    assert arguments[arguments.index("--limit") + 1] == "50"
    assert "--tokens" not in arguments
    assert "limit: 50 is items of each task" in capsys.readouterr().err
    silent = steps(tmp_path, demo_checkpoint, section % ", tokens: null")["eval:m:reference"]
    assert list(silent.arguments) == arguments
    assert capsys.readouterr().err == ""


def test_a_wrong_value_under_an_old_name_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("models: [a]\nevaluate:\n  limit: 100\n  tasks: held-out\n  task_limit: 0\n")
    with pytest.raises(BadInput, match=r"job\.yaml:5: evaluate\.limit: should be greater than or equal to 1"):
        load_job(path)
    with pytest.raises(BadInput, match=r"--set evaluate\.limit: evaluate\.limit: should be greater"):
        load_job(path, ["evaluate.task_limit=-1"])
    path.write_text("models: [a]\nevaluate: {tokens: 100, limit: 3, task_limit: 4}\n")
    with pytest.raises(BadInput, match=r"job\.yaml:2: evaluate: task_limit is called limit now; give one"):
        load_job(path)
