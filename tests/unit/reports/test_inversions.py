"""Where more bits measure worse, the metric is flagged; where chance explains it, nothing is."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from sample_run import RECIPES, quality, subject, task, write_run

import reports
from quantize.results import results_path, write_results
from reports.compare import compare, family
from reports.inversions import bits_of, inversions
from reports.load import load
from reports.rows import Row

GGUF = {name: RECIPES[name] for name in ("gguf-q8_0", "gguf-q4_k_m")}


def with_divergence(**changes: float) -> dict[str, tuple]:  # type: ignore[type-arg]
    divergence = {name.replace("gguf_", "gguf-"): value for name, value in changes.items()}
    return {
        name: (values[0], divergence.get(name, values[1]), *values[2:]) for name, values in RECIPES.items()
    }


def test_a_run_in_order_has_none(tmp_path: Path) -> None:
    (group,) = compare(load([write_run(tmp_path)])).groups
    assert group.inversions == ()
    assert not any("flagged" in warning for warning in group.warnings)


def test_a_wrong_runtime_shows_everywhere(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", with_divergence(gguf_q8_0=0.06))
    (group,) = compare(load([run])).groups
    pairs = {(i.metric, i.finer, i.coarser) for i in group.inversions}
    coarser = ("gguf-q5_k_m", "gguf-q4_k_m")
    assert pairs == {(m, "gguf-q8_0", name) for m in ("kl_mean", "perplexity") for name in coarser}
    rows = {row.label: row for row in group.rows}
    for found in group.inversions:
        mine, theirs = (np.array(rows[n].cells[found.metric].samples) for n in (found.finer, found.coarser))
        wanted = (mine - theirs).mean()  # chunks are of one size
        wanted = np.expm1(wanted) if found.metric == "perplexity" else wanted
        assert found.difference.value == pytest.approx(wanted, rel=1e-9)
        assert found.difference.interval is not None
        assert 0 < found.difference.interval[0] < wanted < found.difference.interval[1]
        assert (found.difference.holm or 0) >= (found.difference.p_value or 0)
    reports.build([run], tmp_path / "report")
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    jsonschema.validate(document, json.loads((tmp_path / "report" / "report.schema.json").read_text()))
    assert {
        (f["metric"], f["finer"], f["coarser"]) for f in document["models"][0]["flagged_metrics"]
    } == pairs
    for name in ("report.md", "index.html"):
        page = (tmp_path / "report" / name).read_text()
        assert "Perplexity (flagged)" in page
        assert "gguf-q8" in page.partition("is flagged")[2][:60]
        assert "do not choose by it" in page


def test_a_task_is_flagged_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path, GGUF)
    s = subject("gguf-q8_0")
    wrong = task(s, "held-out-choice", 0.62, flips=0)
    wrong = [replace(r, samples=tuple(x * (i % 3 > 0) for i, x in enumerate(r.samples))) for r in wrong]
    wrong = [replace(r, value=float(np.mean(r.samples)), interval=None, stderr=None) for r in wrong]
    write_results(results_path(run, s.name, "eval"), s, [*quality(s, 0.0011, "llama.cpp", seed=20), *wrong])
    (group,) = compare(load([run])).groups
    (found,) = group.inversions
    assert (found.metric, found.task, found.finer) == ("accuracy", "held-out-choice", "gguf-q8_0")
    theirs = next(row for row in group.rows if row.label == "gguf-q4_k_m")
    lost = np.mean(theirs.tasks["held-out-choice"]["accuracy"].samples) - wrong[0].value
    assert found.difference.value == pytest.approx(lost)
    assert group.flagged("accuracy", "held-out-choice")
    assert not group.flagged("kl_mean")


def row(recipe: str, divergence: float, seed: int) -> Row:
    s = subject(recipe)
    cells = {result.metric: result for result in quality(s, divergence, "llama.cpp", seed=seed)}
    return Row(s, recipe, family(s), cells)


def test_chance_flags_seldom() -> None:
    """Two artifacts that are equally good: of 60, at most .025 are to be expected (one side of 5 %), 8 would
    be seen once in 10,000 tries."""
    flagged = [
        inversions([row("gguf-q8_0", 0.01, seed), row("gguf-q4_k_m", 0.01, 1000 + seed)])
        for seed in range(60)
    ]
    assert sum(any(i.metric == "kl_mean" for i in found) for found in flagged) < 8


def test_only_one_method_and_other_bits_are_compared() -> None:
    """A better method or a better layout of as many bits is no fault of a metric."""
    assert not inversions([row("quanto-int8", 0.06, 1), row("gguf-q4_k_m", 0.01, 2)])
    assert not inversions([row("gguf-q4_1", 0.06, 1), row("gguf-q4_k_m", 0.01, 2)])
    assert inversions([row("rtn-int8", 0.06, 1), row("rtn-int4", 0.01, 2)])


def test_other_ids_are_not_compared() -> None:
    finer, coarser = row("gguf-q8_0", 0.06, 1), row("gguf-q4_k_m", 0.01, 2)
    cells = {
        name: replace(result, environment={**result.environment, "ids_sha256": "00" * 32})
        for name, result in finer.cells.items()
    }
    assert not inversions([replace(finer, cells=cells), coarser])


@pytest.mark.parametrize(
    ("recipe", "name", "bits"),
    [
        ("gguf-q4_k_m", "x", 4), ("gguf-iq4_xs", "x", 4), ("gguf-f16", "x", 16), ("gguf-bf16", "x", 16),
        ("gptq-int4:group_size=128", "x", 4), ("gptq:bits=3,group_size=64", "x", 3), ("bnb-nf4", "x", 4),
        ("quanto-float8", "x", 8), ("bfloat16", "x", 16), ("", "repo/Model-7B-Q5_K_M.gguf", 5),
        ("awq-int4:group_size=auto", "x", 4), ("gguf-tq1_0", "x", 1), ("", "folder", None),
    ],
)  # fmt: skip
def test_bits(recipe: str, name: str, bits: int | None) -> None:
    assert bits_of(Row(subject(recipe, name=name), recipe, "GGUF")) == bits
