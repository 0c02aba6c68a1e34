"""Divergence from a reference: of what, how it is kept, and when it stays shut."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from eval_runs import RUN, by_metric

from evals import evaluate
from quantize.errors import QuantwrightError
from quantize.recipe import RunOptions
from quantize.results import EvalResult, read_results


def test_divergence_from_the_reference_and_from_itself(
    checkpoint: Path, candidate: Path, text: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    settings = {
        "reference": checkpoint,
        "text": text,
        "protocol": "llamacpp-128",
        "tokens": 2000,
        "run": RUN,
        "say": said.append,
    }
    cached = evaluate([candidate, checkpoint], out=tmp_path, **settings)  # type: ignore[arg-type]
    assert [row.artifact for row in cached] == sorted(
        [row.artifact for row in cached], key=lambda a: a == str(checkpoint)
    )
    itself = by_metric(cached, checkpoint, "llamacpp-128")
    assert itself["perplexity"].role == itself["kl_mean"].role == "reference"
    assert itself["kl_max"].value is not None
    assert 0 <= itself["kl_max"].value < 1e-5
    assert itself["top1_agreement"].value == 1
    moved = by_metric(cached, candidate, "llamacpp-128")
    assert moved["kl_mean"].value is not None
    assert moved["kl_mean"].value > 1e-4
    low, high = moved["kl_mean"].interval or (0, 0)
    assert low < moved["kl_mean"].value < high
    assert moved["ppl_ratio"].value == pytest.approx(
        moved["perplexity"].value / itself["perplexity"].value, rel=1e-5
    )
    expected = {
        "perplexity",
        "bits_per_byte",
        "kl_mean",
        "kl_median",
        "kl_p90",
        "kl_p95",
        "kl_p99",
        "kl_p99.9",
        "kl_max",
    }
    expected |= {"top1_agreement", "ppl_ratio", "ppl_difference", "delta_p_mean", "delta_p_rms"}
    assert expected - {"bits_per_byte"} <= set(moved)
    assert {row.environment["ids_sha256"] for row in cached} == {moved["kl_mean"].environment["ids_sha256"]}
    assert {row.ids for row in cached} == {"source"}

    beside = evaluate([candidate, checkpoint], cache_limit=1000, **settings)  # type: ignore[arg-type]
    assert any("runs again beside every candidate" in line for line in said)
    exact = by_metric(beside, candidate, "llamacpp-128")
    for metric in ("kl_mean", "kl_p99", "ppl_ratio", "delta_p_rms", "top1_agreement", "perplexity"):
        assert moved[metric].value == pytest.approx(exact[metric].value, rel=1e-3, abs=1e-6)
    assert by_metric(beside, checkpoint, "llamacpp-128")["kl_max"].value == 0

    again = evaluate([candidate], out=tmp_path, **settings)  # type: ignore[arg-type]
    assert any("stored logits" in line for line in said)
    assert by_metric(again, candidate, "llamacpp-128")["kl_mean"].value == moved["kl_mean"].value
    written = {subject.name: (subject, rows) for subject, rows in read_results(tmp_path)}
    assert written[str(candidate)][1] == again
    assert written[str(checkpoint)][0].role == "reference"
    assert not list(tmp_path.glob("cache/.reference-*"))


def test_a_reference_whose_results_were_kept_is_not_loaded_again(
    checkpoint: Path, candidate: Path, text: Path, tmp_path: Path
) -> None:
    """As a job's steps share them: each candidate is evaluated in a process of its own."""

    def run(dtype: str = "auto", **more: Any) -> tuple[list[EvalResult], bool]:
        said: list[str] = []
        options = RunOptions(threads=1, progress=False, dtype=dtype)  # type: ignore[arg-type]
        found = evaluate(
            [candidate], reference=checkpoint, text=text, protocol="llamacpp-64", tokens=1000, generate=3,
            out=tmp_path,
            run=options, say=said.append, **more,
        )  # fmt: skip
        return found, any("its weights are not loaded" in line for line in said)

    def of_reference() -> dict[str, EvalResult]:
        return {row.metric: row for subject, rows in read_results(tmp_path) if subject.role for row in rows}

    first, light = run()
    assert not light
    known = of_reference()
    assert {"perplexity", "generations"} <= set(known)
    again, light = run()
    assert light
    assert again == first
    assert of_reference() == known
    assert run(dtype="bfloat16")[1] is False  # computed otherwise, so other logits
    assert run(prompts=["Other words"])[1] is False
    assert run(cache_limit=1000)[1] is False  # what was kept is more than this call allows
    assert not list(tmp_path.glob("cache/.reference-*"))


def test_a_reference_of_which_nothing_is_asked_stays_shut(
    checkpoint: Path, candidate: Path, text: Path, tmp_path: Path
) -> None:
    """Its tokenizer and name are: perplexity alone needs no weights of it."""
    reference = tmp_path / "reference"
    shutil.copytree(checkpoint, reference)
    (reference / "model.safetensors").write_bytes((reference / "model.safetensors").read_bytes()[:-1000])
    settings = {"text": text, "protocol": "llamacpp-64", "tokens": 600, "run": RUN}
    rows = evaluate([candidate], reference=reference, metrics=["perplexity"], **settings)  # type: ignore[arg-type]
    assert [row.metric for row in rows] == ["perplexity", "bits_per_byte"]
    with pytest.raises(QuantwrightError, match=r"transformers cannot load it: .*not fully covered"):
        evaluate([candidate], reference=reference, metrics=["divergence"], **settings)  # type: ignore[arg-type]
