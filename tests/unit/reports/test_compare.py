"""Loading, merging and comparing: against numbers worked out by hand or by brute force."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sample_run import CHUNKS, MODEL, RECIPES, TOKENS, quality, reference_nll, speed, subject, write_run

from quantize.errors import BadInput
from quantize.results import EvalResult, Subject, results_path, write_results
from reports.changes import changes
from reports.compare import compare, family, pareto
from reports.load import load
from reports.markdown import footnotes
from reports.rows import Row, bounds


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def row_of(comparison, recipe: str) -> Row:  # type: ignore[no-untyped-def]
    return next(row for _, row in comparison.rows if row.subject.recipe == recipe)


def test_files_of_one_artifact_become_one_row(run: Path) -> None:
    entries = load([run])
    assert len(entries) == len(RECIPES) + 4  # reference, floor, two that failed
    entry = next(e for e in entries if e.subject.recipe == "gptq-int4")
    assert {"kl_mean", "tg_tokens_per_s", "accuracy"} <= {r.metric for r in entry.results}
    assert entry.subject.status == "ok"


def test_reference_floor_and_order(run: Path) -> None:
    (group,) = compare(load([run])).groups
    assert group.model == MODEL
    assert group.reference is not None
    assert group.reference.subject.role == "reference"
    assert [row.label for row in group.floors] == ["noise floor (bf16 rounding)"]
    sizes = [row.subject.size_bytes or 0 for row in group.measured]
    assert sizes == sorted(sizes)
    assert [row.subject.status for row in group.rows[-2:]] == ["failed", "unsupported"]


def test_perplexity_change_is_paired_and_right(run: Path) -> None:
    (group,) = compare(load([run])).groups
    row = row_of(compare(load([run])), "gguf-q4_k_m")
    mine = np.array(row.cells["perplexity"].samples)
    expected = math.expm1(float((mine - reference_nll()).mean()))
    change = row.perplexity_change
    assert change is not None
    assert change.interval is not None
    assert change.value == pytest.approx(expected, rel=1e-9)
    assert change.interval[0] < expected < change.interval[1]
    # Unpaired, the chunks' own spread would hide a change of 1 %: paired it stands out.
    spread = bounds(row.cells["perplexity"])
    assert spread is not None
    assert (
        change.interval[1] - change.interval[0]
        < 0.1 * (spread[1] - spread[0]) / row.cells["perplexity"].value
    )  # type: ignore[operator]
    assert change.holm is not None
    assert change.holm >= change.p_value  # type: ignore[operator]
    assert group.loss_metric == "kl_mean"


def test_measured_ratio_is_taken_before_samples(tmp_path: Path) -> None:
    run = write_run(tmp_path, {"bnb-nf4": RECIPES["bnb-nf4"]}, tasks=())
    s = subject("bnb-nf4")
    rows = quality(s, 0.03, "transformers", seed=20)
    ratio = replace(
        rows[0], metric="ppl_ratio", value=1.05, interval=(1.04, 1.06), samples=(), detail={"p_value": 0.001}
    )
    write_results(results_path(run, s.name, "eval"), s, [*rows, ratio])
    change = row_of(compare(load([run])), "bnb-nf4").perplexity_change
    assert change is not None
    assert (change.value, change.interval) == (pytest.approx(0.05), pytest.approx((0.04, 0.06)))


def test_other_token_ids_are_not_compared(tmp_path: Path) -> None:
    run = write_run(tmp_path, {k: RECIPES[k] for k in ("gguf-q8_0", "gptq-int4", "bnb-nf4")}, tasks=())
    s = subject("bnb-nf4")
    rows = [
        replace(r, environment={**r.environment, "ids_sha256": "00" * 32})
        for r in quality(s, 0.03, "transformers")
    ]
    write_results(results_path(run, s.name, "eval"), s, rows)
    (group,) = compare(load([run])).groups
    row = row_of(compare(load([run])), "bnb-nf4")
    assert row.value("perplexity") is None
    assert row.perplexity_change is None
    assert any(r.metric == "perplexity" for r in row.others)
    assert any("bnb-nf4" in warning and "other data" in warning for warning in group.warnings)


def test_speed_of_another_depth_is_no_warning(tmp_path: Path) -> None:
    run = write_run(tmp_path, {k: RECIPES[k] for k in ("gguf-q8_0", "gptq-int4")}, tasks=())
    for recipe in ("gguf-q8_0", "gptq-int4"):
        s = subject(recipe)
        rows = speed(s, 50, "llama.cpp")
        deep = [replace(r, protocol="tg128@d512", value=20.0) for r in rows if r.metric == "tg_tokens_per_s"]
        write_results(results_path(run, s.name, "bench"), s, [*deep, *rows])
    (group,) = compare(load([run])).groups
    assert {row.cells["tg_tokens_per_s"].protocol for row in group.measured} == {"tg128"}
    assert not [w for w in group.warnings if "Decode" in w]


def test_without_a_source_the_largest_stands_in(tmp_path: Path) -> None:
    for recipe in ("gguf-q8_0", "gguf-q4_k_m"):
        s = subject(recipe)
        rows = [replace(r, environment={}) for r in quality(s, 0.01, "llama.cpp")[:1]]
        write_results(results_path(tmp_path, s.name, "eval"), s, rows)
    (group,) = compare(load([tmp_path])).groups
    assert group.reference is not None
    assert group.reference.label == "gguf-q8_0"
    assert "largest" in group.reference_why
    assert group.loss_metric == "perplexity"


def test_foreign_gguf_joins_the_reference_it_was_measured_against(tmp_path: Path) -> None:
    run = write_run(tmp_path, {"gguf-q8_0": RECIPES["gguf-q8_0"]}, tasks=())
    s = Subject(
        name="downloads/x.Q4_K_M.gguf",
        recipe="x.Q4_K_M.gguf",
        model="downloads/x.Q4_K_M.gguf",
        digest="aa" * 32,
        size_bytes=1,
    )
    write_results(results_path(run, s.name, "eval"), s, quality(s, 0.02, "llama.cpp"))
    # as bench writes it: no digest, the file's stem
    bench = Subject(name=s.name, recipe="x.Q4_K_M", size_bytes=1)
    write_results(results_path(run, s.name, "bench"), bench, speed(bench, 90, "llama.cpp"))
    (group,) = compare(load([run])).groups
    row = next(row for row in group.rows if row.family == "GGUF" and "x.Q4" in row.label)
    assert row.perplexity_change is not None
    assert row.value("tg_tokens_per_s") is not None


def test_two_models_are_two_groups(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"gguf-q8_0": RECIPES["gguf-q8_0"]}, tasks=())
    s = replace(
        subject("gguf-q8_0"), model="models/other", name="artifacts/other/gguf-q8_0", digest="99" * 32
    )
    rows = [replace(r, environment={"text": "t"}) for r in quality(s, 0.01, "llama.cpp")]
    write_results(results_path(tmp_path / "b", s.name, "eval"), s, rows)
    groups = compare(load([tmp_path / "a", tmp_path / "b"])).groups
    assert sorted(group.model for group in groups) == ["models/other", MODEL]


def test_a_failed_step_does_not_hide_the_others(tmp_path: Path) -> None:
    run = write_run(tmp_path, {"gguf-q8_0": RECIPES["gguf-q8_0"]}, tasks=())
    s = replace(subject("gguf-q8_0"), status="failed", reason="exit 1: out of memory")
    write_results(results_path(run, s.name, "bench"), s, [])
    row = row_of(compare(load([run])), "gguf-q8_0")
    assert row.subject.status == "partial"
    assert row.failures == ("exit 1: out of memory",)
    assert row.value("kl_mean") is not None


def test_later_run_wins(tmp_path: Path, run: Path) -> None:
    s = subject("gguf-q8_0")
    write_results(results_path(tmp_path, s.name, "bench"), s, speed(s, 999.0, "llama.cpp"))
    merged = row_of(compare(load([run, tmp_path])), "gguf-q8_0")
    assert merged.value("tg_tokens_per_s") == pytest.approx(999, rel=0.1)
    assert merged.value("kl_mean") == row_of(compare(load([run])), "gguf-q8_0").value("kl_mean")
    found = changes(compare(load([run])), compare(load([run, tmp_path])))
    assert [c["metric"] for c in found if c["kind"] == "number" and c["artifact"] == "gguf-q8_0"].count(
        "tg_tokens_per_s"
    ) == 1
    assert all(c["artifact"] == "gguf-q8_0" for c in found)


def test_changes_ignore_what_intervals_cover(run: Path, tmp_path: Path) -> None:
    assert changes(compare(load([run])), compare(load([run]))) == []
    s = subject("gguf-q8_0")
    rows = quality(s, 0.00112, "llama.cpp", seed=77)  # the same divergence, other noise
    write_results(results_path(tmp_path, s.name, "eval"), s, rows)
    found = changes(compare(load([run])), compare(load([run, tmp_path])))
    assert not [c for c in found if c.get("metric") == "perplexity"]


def test_within_noise(tmp_path: Path) -> None:
    recipes = {"gguf-q8_0": (8.5, 0.00015, 100.0, "llama.cpp", ("llama.cpp",)), "bnb-nf4": RECIPES["bnb-nf4"]}
    (group,) = compare(load([write_run(tmp_path, recipes, tasks=())])).groups
    verdict = {row.label: row.within_noise for row in group.measured}
    assert verdict == {"gguf-q8_0": True, "bnb-nf4": False}


def test_a_report_without_floors_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path, {"bnb-nf4": RECIPES["bnb-nf4"]}, tasks=())
    entries = load([run])
    for left_out, chosen in ((False, entries), (True, [e for e in entries if e.subject.role != "floor"])):
        (group,) = compare(chosen).groups
        assert any("No floor rows were measured" in warning for warning in group.warnings) == left_out


def test_a_floor_on_a_part_of_the_text_counts(tmp_path: Path) -> None:
    """evals.floors measures on fewer tokens, so on other ids; on another text it is none."""
    for text, counts in (("same", True), ("another", False)):
        run = write_run(tmp_path / text, {k: RECIPES[k] for k in ("gguf-q8_0", "bnb-nf4")}, tasks=())
        floor = Subject(name="noise floor (bf16 rounding)", recipe="")
        shorter = {"ids_sha256": "00" * 32} | ({"text_sha256": "11" * 32} if text == "another" else {})
        rows = [
            replace(r, n=10, environment={**r.environment, **shorter})
            for r in quality(floor, 0.0002, "", "floor", seed=9)
        ]
        source = next(e for e in load([run]) if e.subject.role == "reference").subject
        reference = quality(source, 0.0, "transformers", "reference", seed=0)
        write_results(results_path(run, source.name, "eval"), source, reference + rows)
        (group,) = compare(load([run])).groups
        assert (group.floors[0].value("kl_mean") is not None) == counts
        assert any("other data" in warning for warning in group.warnings) != counts
        assert ("Floors: on 10 of them" in " ".join(footnotes(group))) == counts


def test_task_differences_hold_their_level(tmp_path: Path) -> None:
    recipes = {f"gptq:bits={i}": (4.0, 0.01, 10.0, "transformers", ("transformers",)) for i in range(6)}
    RECIPES.update(recipes)
    (group,) = compare(load([write_run(tmp_path, recipes)])).groups
    for row in group.measured:
        change = row.task_differences["held-out-choice"]
        theirs = np.array(group.reference.tasks["held-out-choice"]["accuracy"].samples)  # type: ignore[union-attr]
        mine = np.array(row.tasks["held-out-choice"]["accuracy"].samples)
        assert change.value == pytest.approx((mine - theirs).mean())
        assert change.holm is not None
        assert change.p_value is not None
        assert change.p_value <= change.holm <= 1
    for recipe in recipes:
        del RECIPES[recipe]


@pytest.mark.parametrize("seed", range(5))
def test_pareto_against_brute_force(seed: int) -> None:
    points = [tuple(p) for p in np.random.default_rng(seed).integers(0, 8, (20, 2)).tolist()]
    front = pareto(points)
    for index, (x, y) in enumerate(points):
        beaten = any((a <= x and b <= y) and (a < x or b < y) for a, b in points)
        if index in front:
            assert not beaten
        elif not beaten:
            assert points[index] in [points[i] for i in front]  # a twin of one that is on it


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [("gguf-q4_k_m", "GGUF"), ("gptq:bits=3", "GPTQ"), ("awq-int4", "AWQ"), ("quanto-int8", "quanto"),
     ("bnb-nf4", "bitsandbytes"),
     ("bfloat16", "unquantized"), ("model.Q4_K_M.gguf", "GGUF"), ("compressed-tensors", "compressed-tensors"),
     ("ct-w4a16:by=gptq", "compressed-tensors"), ("hqq-int4", "other")],
)  # fmt: skip
def test_family(recipe: str, expected: str) -> None:
    assert family(Subject(name=recipe, recipe=recipe)) == expected


@pytest.mark.parametrize("case", ["missing", "empty", "malformed", "none"])
def test_bad_runs(case: str, tmp_path: Path) -> None:
    runs = [tmp_path / "run"]
    if case != "missing":
        (tmp_path / "run" / "results").mkdir(parents=True)
    if case == "malformed":
        (tmp_path / "run" / "results" / "x.eval.json").write_text("{")
    with pytest.raises(BadInput) as caught:
        load([] if case == "none" else runs)
    assert "\n" not in str(caught.value)


def test_bounds_fall_back_to_the_standard_error() -> None:
    base = EvalResult("a", "kl_mean", "p", 1.0)
    assert bounds(base) is None
    assert bounds(replace(base, stderr=0.1)) == pytest.approx((0.804, 1.196))
    assert bounds(replace(base, stderr=0.1, interval=(0.7, 1.4))) == (0.7, 1.4)
    assert CHUNKS * TOKENS == 30600
