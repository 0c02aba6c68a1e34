"""Which logits go along with an evaluation, and where what comes from a node ends up."""

import json
from pathlib import Path

import pytest

from jobs.models import OpenModel
from jobs.spec import Model
from jobs.steps.evaluate import EvalStep
from jobs.transfer import settle
from quantize.results import results_path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name, reference in (
        ("reference-a", "digest-a"),
        ("reference-b", "digest-b"),
        ("reference-c", "digest-c"),
    ):
        (tmp_path / "cache" / name).mkdir(parents=True)
        (tmp_path / "cache" / name / "cache.json").write_text(json.dumps({"reference": reference}))
    (tmp_path / "results").mkdir()
    for model in ("a", "b"):
        result = results_path(tmp_path, f"model-{model}", "eval")
        result.write_text(
            json.dumps({"subject": {"status": "ok", "digest": f"digest-{model}"}, "results": []})
        )
    return tmp_path


def step(model: str) -> EvalStep:
    name = f"model-{model}"
    return EvalStep(
        arguments=("eval", name, "--reference", name),
        output=results_path(Path(), name, "eval"),
        model=OpenModel(Model(source=name), model, name, None),
        reference=name,
    )


@pytest.mark.parametrize("model", ["a", "b", "c"])
def test_logits_of_the_steps_own_reference_go_along(run: Path, model: str) -> None:
    """c has not been evaluated yet: its logits came from the shared cache."""
    assert list(step(model).carried(run)) == [f"cache/reference-{model}/cache.json"]


def test_results_and_logits_settle_where_a_step_here_leaves_them(run: Path) -> None:
    node = run / ".work" / "eval.a" / "arrived"
    names = [".work/eval.a/results/x.json", "cache/reference-a/cache.json", "cache/reference-n/cache.json"]
    for name in names:
        (node / name).parent.mkdir(parents=True, exist_ok=True)
        (node / name).write_text("from the node")
    settle(dict.fromkeys(names, ""), node, run)
    assert (run / names[0]).read_text() == "from the node"
    assert (run / names[2]).read_text() == "from the node"
    assert json.loads((run / names[1]).read_text()) == {"reference": "digest-a"}  # what is there stays
