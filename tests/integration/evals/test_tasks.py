"""Tasks and generations of small checkpoints, item by item."""

import json
from pathlib import Path

import pytest
from eval_runs import RUN, token_ids

from evals import evaluate
from quantize.calibration.texts import stdlib_documentation


def test_tasks_agree_with_lm_eval_item_by_item(checkpoint: Path, tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from other_tools import export_yaml

    from evals.heldout_task import make_items
    from evals.local_task import LocalTask

    items = make_items(stdlib_documentation()[:200_000], 16)
    contexts = [
        {"context_options": i["choices"][:2], "continuation": i["query"][:40], "gold": 1} for i in items
    ]
    plain = [{"context": i["query"], "continuation": i["choices"][0].split()[0]} for i in items]
    tasks = [
        LocalTask("choose", tmp_path / "choose.jsonl", "choices", tuple(items)),
        LocalTask("which", tmp_path / "which.jsonl", "contexts", tuple(contexts)),
        LocalTask("next", tmp_path / "next.jsonl", "continuation", tuple(plain)),
    ]
    yamls = [export_yaml(task, tmp_path) for task in tasks]
    ours = evaluate([checkpoint], tasks=[tmp_path / f"{task.name}.jsonl" for task in tasks], run=RUN)
    by_yaml = evaluate([checkpoint], tasks=[yamls[0]], run=RUN)
    theirs = lm_eval.simple_evaluate(
        HFLM(pretrained=str(checkpoint), dtype="float32", batch_size=4, device="cpu"),
        tasks=[str(path) for path in yamls],
        bootstrap_iters=10,
        task_manager=TaskManager(include_defaults=False),
    )
    names = {"accuracy": "acc", "accuracy_norm": "acc_norm", "perplexity": "perplexity"}
    assert {(row.task, row.metric) for row in ours} >= {
        ("choose", "accuracy_norm"),
        ("which", "accuracy"),
        ("next", "perplexity"),
    }
    for row in [*ours, *by_yaml]:
        samples = sorted(theirs["samples"][row.task], key=lambda s: s["doc_id"])
        assert row.samples == pytest.approx([float(s[names[row.metric]]) for s in samples], rel=1e-4)
        assert row.value == pytest.approx(theirs["results"][row.task][f"{names[row.metric]},none"], rel=1e-4)
    accuracy = next(row for row in ours if (row.task, row.metric) == ("choose", "accuracy"))
    assert accuracy.stderr == pytest.approx(theirs["results"]["choose"]["acc_stderr,none"])


def test_generations_are_greedy_and_side_by_side_in_the_report(
    checkpoint: Path, candidate: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from reports import build

    prompts = ["The river had risen", "<b>Return & go</b>"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n\n", encoding="utf-8")
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": p}) + "\n" for p in prompts), encoding="utf-8"
    )
    rows = evaluate(
        [checkpoint, candidate], prompts=tmp_path / "prompts.txt", generate=12, run=RUN, out=tmp_path / "run"
    )
    assert [(row.metric, row.protocol, row.n, row.value) for row in rows] == [
        ("generations", "greedy-12", 2, None)
    ] * 2
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    for item, prompt in zip(rows[0].detail["items"], prompts, strict=True):
        ids = torch.tensor([token_ids(checkpoint, prompt)])
        with torch.no_grad():
            made = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[
                0, ids.shape[1] :
            ].tolist()
        ended = "end of text" if made[-1] == 0 else "length"
        assert (item["prompt"], item["ids"], item["ended"]) == (prompt, [i for i in made if i], ended)
    again = evaluate([checkpoint], prompts=tmp_path / "prompts.jsonl", generate=12, run=RUN)
    assert again[0].detail == rows[0].detail
    assert rows[1].detail != rows[0].detail

    against = evaluate(
        [candidate],
        reference=checkpoint,
        generate=6,
        tokens=600,
        protocol="gptq-64",
        run=RUN,
        out=tmp_path / "run",
    )
    assert len(against[-1].detail["items"]) == 3
    build([tmp_path / "run"])
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "Side by side" in page
    assert "<mark>" in page
    assert "<b>Return" not in page
