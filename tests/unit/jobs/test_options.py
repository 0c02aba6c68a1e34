"""What `eval` and `bench` can do by options, a job file can say; what changes results is in the key of the
step."""

from pathlib import Path
from typing import Any

import click
import pytest

from benchmarks.command import bench
from evals.command import evaluate
from jobs.commands.init import TEMPLATE
from jobs.load import load_job
from jobs.plan import build_plan
from jobs.spec import Benchmark, Evaluate
from jobs.steps.step import Step
from quantize.calibration.samples import VERSION as SAMPLING
from quantize.errors import BadInput

HEAD = "recipes: [gguf-q4_k_m, quanto-int8]\nreport: false\n"
#: Said elsewhere in the file, or by the runner: what is measured, against what, where the results go, on
#: which machine.
OTHERWISE = {"artifacts", "reference", "load_as", "cache", "prune", "out", "as_json"}


@pytest.mark.parametrize(("command", "model"), [(evaluate, Evaluate), (bench, Benchmark)])
def test_every_option_has_a_key(command: click.Command, model: Any) -> None:
    run = {"device", "dtype", "threads", "memory", "trust_remote_code"}
    names = {option.name for option in command.params} - OTHERWISE - run
    assert names <= set(model.model_fields)


def steps(folder: Path, demo: Path, text: str) -> dict[str, Step]:
    path = folder / "job.yaml"
    path.write_text(f"models: [{{source: {demo}, name: m}}]\n{HEAD}{text}", encoding="utf-8")
    return {step.id: step for step in build_plan(load_job(path), folder).steps}


@pytest.mark.parametrize(
    ("kind", "key", "expected"),
    [
        ("eval", "num_fewshot: 0", {"num_fewshot": 0}),
        ("eval", "apply_chat_template: true", {"apply_chat_template": True}),
        ("eval", "chat_template: terse", {"chat_template": "terse"}),
        ("eval", "allow_code_execution: true", {"allow_code_execution": True}),
        ("eval", "allow_task_code: true", {"allow_task_code": True}),
        ("eval", "limit: 3", {"limit": 3}),
        ("eval", "tokens: 2000", {"tokens": 2000}),
        ("eval", "protocol: [gptq-64, exl3-64]", {"protocol": ["gptq-64", "exl3-64"]}),
        ("eval", "generate: 9", {"generate": 9}),
        ("eval", "weights_only: none", {"weights_only": "none"}),
        ("eval", "runtime: vllm", {"runtime": "vllm"}),
        ("bench", "batches: [1, 8]", {"batches": [1, 8]}),
        ("bench", "depths: [0, 64]", {"depths": [0, 64]}),
        ("bench", "attention: eager", {"attention": "eager"}),
        ("bench", "compile: true", {"compile": True}),
        ("bench", "runtime: vllm", {"runtime": "vllm"}),
    ],
)
def test_a_key_becomes_the_option_and_changes_the_step(
    tmp_path: Path, demo_checkpoint: Path, kind: str, key: str, expected: dict[str, Any]
) -> None:
    section = {
        "eval": "evaluate: {text: held-out, tasks: [held-out]%s}\n",
        "bench": "benchmark: {rounds: 1%s}\n",
    }[kind]
    plain = steps(tmp_path, demo_checkpoint, section % "")
    changed = steps(tmp_path, demo_checkpoint, section % f", {key}")
    command = {"eval": evaluate, "bench": bench}[kind]
    had = set()
    for name in (f"{kind}:m:gguf-q4_k_m", f"{kind}:m:quanto-int8", f"{kind}:m:reference"):
        assert plain[name].inputs != changed[name].inputs
        given = command.make_context(kind, list(changed[name].arguments[1:])).params
        if all(given[option] == value for option, value in expected.items()):
            had.add(name.rpartition(":")[2])
    # Each where it means something.
    only = {
        "runtime": {"quanto-int8"} | ({"reference"} if kind == "bench" else set()),
        "weights_only": {"gguf-q4_k_m"},
        "compile": {"quanto-int8", "reference"},
    }
    assert had == only.get(next(iter(expected)), {"gguf-q4_k_m", "quanto-int8", "reference"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "evaluate:\n  num_fewshots: 3\n",
            "job.yaml:5: evaluate.num_fewshots: unknown key (did you mean num_fewshot?)",
        ),
        (
            "evaluate:\n  num_fewshot: -1\n",
            "job.yaml:5: evaluate.num_fewshot: should be greater than or equal to 0",
        ),
        (
            "evaluate:\n  weights_only: half\n",
            "job.yaml:5: evaluate.weights_only: should be 'sample', 'full' or 'none'",
        ),
        ("evaluate:\n  runtime: vlm\n", "job.yaml:5: evaluate.runtime: should be 'vllm'"),
        (
            "benchmark:\n  batches: [1, 0]\n",
            "job.yaml:5: benchmark.batches.1: should be greater than or equal to 1",
        ),
        ("benchmark:\n  batches: []\n", "job.yaml:5: benchmark.batches: "),
        (
            "benchmark:\n  depths: [-1]\n",
            "job.yaml:5: benchmark.depths.0: should be greater than or equal to 0",
        ),
        (
            "benchmark:\n  atention: eager\n",
            "job.yaml:5: benchmark.atention: unknown key (did you mean attention?)",
        ),
        ("benchmark:\n  compile: maybe\n", "job.yaml:5: benchmark.compile: "),
    ],
)
def test_a_wrong_value_is_said_with_its_line(
    tmp_path: Path, demo_checkpoint: Path, text: str, expected: str
) -> None:
    with pytest.raises(BadInput) as caught:
        steps(tmp_path, demo_checkpoint, text)
    assert expected in str(caught.value)


def test_the_keys_that_init_comments_are_keys(tmp_path: Path) -> None:
    inside = TEMPLATE.format(name="job.yaml").split("\nevaluate:\n")[1].split("\n\n")[0]
    keys = [line.strip(" #").partition(":")[0] for line in inside.splitlines()]
    assert set(keys) <= set(Evaluate.model_fields)
    path = tmp_path / "job.yaml"
    more = TEMPLATE.format(name="job.yaml").split("# more: ")[1].splitlines()[0]
    path.write_text(f"models: [a]\nbenchmark: {more}\n", encoding="utf-8")
    assert load_job(path).benchmark is not None


@pytest.mark.parametrize(
    ("source", "known"), [("auto", True), ("self*0.5,stdlib*0.5", True), ("stdlib", False)]
)
def test_a_step_that_calibrates_on_samples_knows_how_they_are_drawn(
    tmp_path: Path, demo_checkpoint: Path, source: str, known: bool
) -> None:
    """A job makes again what other samples would make otherwise."""
    path = tmp_path / "job.yaml"
    path.write_text(f'models: [{demo_checkpoint}]\nrecipes: [gptq-int4]\ncalibration: "{source}"\n')
    (step,) = (each for each in build_plan(load_job(path), tmp_path).steps if each.kind == "convert")
    assert step.inputs.get("samples") == (SAMPLING if known else None)
