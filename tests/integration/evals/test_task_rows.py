"""Rows of tasks: paired with the reference's, filter by filter, and what they say of examples."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from bigram import HEADING, Bigram, letters_model, make_task, random_table

from evals import statistics
from evals.local_task import LocalTask
from evals.options import EvalOptions
from evals.special import SpecialIds
from evals.task_files import HarnessTask, read_yaml
from evals.task_rows import pair_with_reference
from evals.tasks import run_tasks
from quantize.errors import BadInput
from quantize.results import EvalResult, Subject, merge_results

pytest.importorskip("lm_eval")


def test_candidates_are_paired_with_the_reference() -> None:
    from dataclasses import replace

    task = make_task("choices", 60)
    special = SpecialIds(0, 0)
    reference = run_tasks(
        letters_model(), [task], None, replace(HEADING, role="reference"), EvalOptions(), False, special
    )
    others = [
        run_tasks(letters_model(seed), [task], None, HEADING, EvalOptions(), False, special)
        for seed in (1, 2)
    ]
    rows = pair_with_reference([*reference, *others[0], *others[1]])
    assert "vs_reference" not in rows[0].detail
    for row in rows[2:]:
        paired = row.detail["vs_reference"]
        base = next(r for r in reference if r.metric == row.metric)
        assert paired["difference"] == pytest.approx(row.value - base.value)
        assert paired["p_mcnemar"] <= paired["p_holm"] <= 1


class Speaking(Bigram):
    """Spells tokens, and keeps the texts that it was given."""

    def __init__(self, table: np.ndarray, context: int = 2048):
        super().__init__(table, context=context, bos=0)
        self.heard: list[str] = []

    def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        self.heard.append(text)
        return super().tokenize(text, add_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        return "".join(chr(ord("a") + i % 26) if i else "" for i in ids)


@pytest.mark.parametrize("shots", [2, 5])
def test_an_item_is_not_among_its_own_examples(shots: int) -> None:
    items = tuple(
        {"query": f"Item {n}: say", "choices": [f"alpha{n}", f"beta{n}"], "gold": n % 2} for n in range(6)
    )
    task, options = LocalTask("own", Path("own.jsonl"), "choices", items), EvalOptions(num_fewshot=shots)
    model = Speaking(random_table(60))
    (row, _) = run_tasks(model, [task], None, HEADING, options, False, SpecialIds(0, 0))
    asked = [text for text in model.heard if text.count("Item ") == shots + 1]
    assert len(asked) >= 6
    for text in asked:
        own = re.findall(r"Item \d: say", text)[-1]
        assert text.count(own) == 1
    assert "remarks" not in row.detail
    with pytest.raises(BadInput, match=r"own has 6 items.*ask for at most 5"):
        run_tasks(model, [task], None, HEADING, EvalOptions(num_fewshot=6), False, SpecialIds(0, 0))


def yaml_task(folder: Path, more: str) -> HarnessTask:
    data = folder / "data.jsonl"
    data.write_text(
        "".join(json.dumps({"question": f"Item {n}: say", "answer": "bcd"[n % 3]}) + "\n" for n in range(9))
    )
    path = folder / "say.yaml"
    path.write_text(
        f"task: say\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        f"doc_to_text: question\ndoc_to_target: answer\n{more}"
    )
    return read_yaml(path)


def test_a_task_whose_examples_are_what_it_measures_says_so(tmp_path: Path) -> None:
    metrics = (
        "output_type: loglikelihood\nmetric_list:\n- {metric: acc, aggregation: mean, "
        "higher_is_better: true}\n"
    )
    for more, said in ((metrics, True), (metrics + "fewshot_split: test\n", False)):
        task = yaml_task(tmp_path, more)
        options = EvalOptions(num_fewshot=2)
        (row,) = run_tasks(
            Speaking(random_table(60)), [task], None, HEADING, options, False, SpecialIds(0, 0)
        )
        assert any("can be its own example" in remark for remark in row.detail.get("remarks", ())) == said


def test_examples_from_validation_data_leave_the_item_out(tmp_path: Path) -> None:
    """A task of lm-eval's without a test split, on a file."""
    from evals.task_files import parse_tasks

    endings = ["one.", "two.", "three.", "four."]
    items = [
        {"ctx_a": f"Item {n}", "ctx_b": "goes", "activity_label": "A", "endings": endings, "label": n % 4}
        for n in range(6)
    ]
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    model = Speaking(random_table(60))
    tasks = parse_tasks([f"hellaswag={tmp_path / 'h.jsonl'}"], print)
    (row, *_) = run_tasks(model, tasks, None, HEADING, EvalOptions(num_fewshot=2), False, SpecialIds(0, 0))
    asked = [text for text in model.heard if text.count("Item ") == 3]
    assert asked
    assert all(text.count(re.findall(r"Item \d", text)[-1]) == 1 for text in asked)
    assert "remarks" not in row.detail


FILTERS = """output_type: generate_until
generation_kwargs: {until: ["|"], max_gen_toks: 3}
filter_list:
- {name: first, filter: [{function: regex, regex_pattern: "^(.)"}, {function: take_first}]}
- {name: last, filter: [{function: regex, regex_pattern: "(.)$"}, {function: take_first}]}
metric_list:
- {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


def test_rows_are_paired_filter_by_filter(tmp_path: Path) -> None:
    from dataclasses import replace

    task = yaml_task(tmp_path, FILTERS)
    model, special = Speaking(random_table(60, seed=3)), SpecialIds(0, 0)
    heading = replace(HEADING, role="reference")
    reference = run_tasks(model, [task], None, heading, EvalOptions(), False, special)
    for row in reference:  # whatever the model says: two filters that differ, on the same items
        right = tuple(
            float(n % 3 == (0 if row.protocol_parameters["filter"] == "first" else 1)) for n in range(9)
        )
        reference[reference.index(row)] = replace(row, samples=right, value=float(np.mean(right)) - 0.0)
    candidates = [replace(row, role="", samples=(1.0,) * 5 + (0.0,) * 4, value=5 / 9) for row in reference]
    assert [row.protocol_parameters["filter"] for row in candidates] == ["first", "last"]
    for order in (reference, reference[::-1]):
        paired = pair_with_reference([*order, *candidates])[2:]
        for row, base in zip(paired, reference, strict=True):
            wanted = statistics.accuracy_difference(np.array(row.samples), np.array(base.samples))
            assert row.detail["vs_reference"]["p_mcnemar"] == wanted.p_value
            assert row.detail["vs_reference"]["interval"] == pytest.approx(wanted.interval)
    other = [replace(row, environment={"items_sha256": "others"}) for row in candidates]
    assert all("vs_reference" not in row.detail for row in pair_with_reference([*reference, *other])[2:])


def test_results_of_other_filters_and_examples_are_kept(tmp_path: Path) -> None:
    def row(value: float, **parameters: object) -> EvalResult:
        return EvalResult(
            "a", "exact_match", "lm-eval", value, task="gsm8k", protocol_parameters=dict(parameters)
        )

    subject = Subject("a", "recipe", digest="1")
    merge_results(
        tmp_path / "a.json",
        subject,
        [row(1, filter="strict", num_fewshot=5), row(2, filter="flexible", num_fewshot=5)],
    )
    merge_results(
        tmp_path / "a.json",
        subject,
        [row(3, filter="strict", num_fewshot=0), row(4, filter="strict", num_fewshot=5)],
    )
    found = json.loads((tmp_path / "a.json").read_text())["results"]
    assert sorted(entry["value"] for entry in found) == [2, 3, 4]
