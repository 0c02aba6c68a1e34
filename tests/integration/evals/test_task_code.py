"""What a task file would run is refused by name unless it is allowed; its templates cannot reach anything, or
run for ever."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.measure import measure
from evals.options import EvalOptions
from evals.task_code import no_task_code
from evals.task_files import parse_tasks
from quantize.chat import worker
from quantize.chat.render import render_task
from quantize.errors import BadInput, Unsupported

TASK = """\
task: small
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}\\n{{{{ query | regex_replace('[aeiou]', '_') }}}}"
doc_to_choice: choices
doc_to_target: gold
{more}
"""
MARK = "def mark(docs):\n    open({path!r}, 'w').close()\n    return docs\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A task file on two items, with a module beside it whose function leaves a mark, ``ran``."""
    data = tmp_path / "items.jsonl"
    data.write_text(
        '{"query": "one", "choices": ["two", "three"], "gold": 0}\n{"query": "b", "choices": ["c", "d"], '
        '"gold": 1}\n'
    )
    (tmp_path / "evil.py").write_text(MARK.format(path=str(tmp_path / "ran")))

    def made(more: str = "", name: str = "small.yaml") -> Path:
        path = tmp_path / name
        path.write_text(TASK.format(data=data, more=more))
        return path

    return made


#: what is added to a good task -> words of the refusal
REFUSED = {
    "process_docs: !function evil.mark": (
        ":9: runs its own Python (!function evil.mark)",
        "--allow-task-code",
    ),
    "metric_list: [{metric: !function os.system}]": (":9: runs its own Python", "os.system"),
    "fewshot_config: {sampler: first_n, samples: !function evil.mark}": (":9: runs its own Python",),
    "metric_list: [{metric: ./evil.py}]": ("./evil.py", "script", "--allow-task-code"),
    "metric_list: [{metric: someone/metric, aggregation: mean}]": ("someone/metric", "script"),
    "metric_list: [{metric: acc, hf_evaluate: true}]": ("'acc'", "script"),
    "unsafe_code: true": ("--allow-code-execution",),
    "dataset_path: sql": ("'sql'", "--allow-task-code"),
    "base: &a [1]\nother: *a": ("line 10: YAML aliases",),
    "other: !!python/object/apply:os.system [ls]": ("not valid YAML", "python/object"),
}


@pytest.mark.parametrize("more", REFUSED)
def test_what_would_run_code_is_refused_by_name(write: Callable[..., Path], more: str) -> None:
    path = write(more)
    with pytest.raises(BadInput) as error:
        parse_tasks([str(path)], print)
    for words in (str(path), *REFUSED[more]):
        assert words in str(error.value)


def test_in_what_it_includes_too_and_in_tasks_inside_a_group(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    write("process_docs: !function evil.mark", "inner.yaml")
    (tmp_path / "outer.yaml").write_text("include: inner.yaml\ntask: outer\n")
    (tmp_path / "group.yaml").write_text(
        "group: g\ntask:\n- {task: a, metric_list: [{metric: x/y}]}\n- {group: b, task: [{task: c, "
        "unsafe_code: true}]}\n"
    )
    (tmp_path / "loop.yaml").write_text("task: l\ninclude: [loop.yaml]\n")
    for name, expected in (
        ("outer", "inner.yaml:9: runs its own Python"),
        ("group", "x/y"),
        ("loop", "includes"),
    ):
        with pytest.raises(BadInput, match=expected):
            parse_tasks([str(tmp_path / f"{name}.yaml")], print)


def test_lm_evals_own_functions_and_metrics_pass_and_its_code_tasks_ask(tmp_path: Path) -> None:
    import lm_eval.tasks

    tasks = Path(lm_eval.tasks.__file__).parent
    for name, other in (
        ("own", "hellaswag/hellaswag.yaml"),
        ("code", "humaneval/humaneval.yaml"),
        ("out", "../../evil.yaml"),
    ):
        (tmp_path / f"{name}.yaml").write_text(f"include: {tasks / other}\ntask: mine\n")
    assert parse_tasks([str(tmp_path / "own.yaml")], print)
    with pytest.raises(BadInput, match="--allow-code-execution"):
        parse_tasks([str(tmp_path / "code.yaml")], print)
    assert parse_tasks([str(tmp_path / "code.yaml")], print, allow_code=True)
    with pytest.raises(BadInput, match="no such task file"):
        parse_tasks([str(tmp_path / "out.yaml")], print)


def test_allowed_it_runs_and_without_it_the_task_counts_the_same(
    write: Callable[..., Path], make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_checkpoint(hidden_size=64, intermediate_size=64, num_hidden_layers=1)

    def rows(path: Path, **options: Any) -> list[Any]:
        return measure([model], EvalOptions.of(tasks=[path], **options), say=lambda line: None).results

    plain = rows(write())
    assert not (tmp_path / "ran").exists()
    path = write("process_docs: !function evil.mark")
    allowed = rows(path, allow_task_code=True)
    assert (tmp_path / "ran").exists()
    assert [row.value for row in allowed] == [row.value for row in plain]
    assert allowed[0].environment["items_sha256"] == plain[0].environment["items_sha256"]
    assert "allowed to run" in allowed[0].detail["remarks"][0]
    for template, words in (
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ nobody }}", "nobody"),
        ("{{ 'a' * 10 ** 10 }}", "more memory or depth than allowed"),
    ):
        options = EvalOptions.of(tasks=[write(f'gen_prefix: "{template}"')])
        outcome = measure([model], options, say=lambda line: None)
        assert words in str(outcome.failures[0][1])


def test_templates_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SECONDS", 0.5)
    item = {"query": "a\n", "choices": ["b"], "n": None}
    assert render_task("{{query}} {{choices[0]}} {{n}}\n", item, where="t") == "a\n b None\n"
    assert render_task("{{ query | regex_replace('a', 'c') }}", item, where="t") == "c\n"
    for template, words in (
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ choices.append(1) }}", "unsafe"),
        ("{{ nobody }}", "'nobody' is undefined"),
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% "
            "endfor %}{% endfor %}",
            "0.5 s",
        ),
        ("{{ 'a' * 10 ** 10 }}", "more memory or depth than allowed"),
    ):
        with pytest.raises(BadInput, match="t: a template") as error:
            render_task(template, item, where="t")
        assert words in str(error.value)
    with pytest.raises(BadInput, match="set"):
        render_task("x", {"a": {1}}, where="t")


def test_a_metrics_script_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval logs the failure and goes on; the step ends all the same."""
    import evaluate
    from lm_eval.api.registry import get_metric

    script = tmp_path / "metric" / "metric.py"
    script.parent.mkdir()
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(Unsupported, match="--allow-task-code"), no_task_code("t", False, True):
        get_metric(str(script))
    assert not (tmp_path / "ran").exists()
