"""Rows below which a divergence means nothing."""

from pathlib import Path
from typing import Any

import pytest
from eval_runs import RUN, by_metric

from evals import evaluate
from quantize.recipe import RunOptions
from quantize.results import read_results


def test_floors_are_below_what_a_rounded_model_loses(
    checkpoint: Path, candidate: Path, text: Path, tmp_path: Path
) -> None:
    """Another dtype, and another runtime on the same ids, both of the reference itself."""
    settings = {"reference": checkpoint, "text": text, "tokens": 1000, "protocol": "gptq-100", "run": RUN}
    rows = evaluate([candidate], out=tmp_path / "run", **settings)
    loss = by_metric(rows, candidate, "gptq-100")["kl_mean"].value
    results = [
        result
        for subject, found in read_results(tmp_path / "run")
        for result in found
        if result.role == "floor"
    ]
    floors = {result.backend: result.value for result in results if result.metric == "kl_mean"}
    assert floors.keys() == {"transformers", "llama.cpp"}
    assert 0 <= floors["llama.cpp"] < 1e-6
    assert floors["llama.cpp"] < floors["transformers"] < loss
    assert {(result.n, len(result.samples)) for result in results if result.metric == "kl_mean"} == {
        (2 * 99, 2)
    }
    evaluate([candidate], floors=False, out=tmp_path / "without", **settings)
    assert not [
        row for _, found in read_results(tmp_path / "without") for row in found if row.role == "floor"
    ]


def test_a_floor_that_cannot_be_had_says_why_and_costs_nothing(
    checkpoint: Path, candidate: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever another library raises; what may pass is tried again."""
    from evals import floors
    from reports import build

    settings = {
        "reference": checkpoint,
        "text": text,
        "tokens": 1000,
        "protocol": "gptq-100",
        "out": tmp_path / "run",
        "run": RUN,
    }
    real = floors.open_runtime

    def broken(path: Path, run: RunOptions, **more: Any) -> Any:
        if run.dtype == "bfloat16":
            raise RuntimeError("no kernel for BFloat16")
        return real(path, run, **more)

    monkeypatch.setattr(floors, "open_runtime", broken)
    before = evaluate([candidate], **settings)
    build([tmp_path / "run"])
    assert "no kernel for BFloat16" in (tmp_path / "run" / "report" / "report.md").read_text()
    monkeypatch.undo()
    after = evaluate([candidate], **settings)
    assert [row.value for row in before] == [row.value for row in after]
    results = [
        result for _, found in read_results(tmp_path / "run") for result in found if result.role == "floor"
    ]
    assert all(result.value is not None for result in results if result.metric == "kl_mean")


def test_a_gguf_reference_has_a_floor_too(checkpoint: Path, tmp_path: Path, text: Path) -> None:
    from quantize.conversion import convert

    both = [tmp_path / recipe for recipe in ("gguf-f16", "gguf-q4_0")]
    for folder in both:
        convert(checkpoint, folder.name, folder, verify="none", run=RUN)
    evaluate(
        both[1:],
        reference=both[0],
        text=text,
        tokens=1000,
        protocol="llamacpp-100",
        out=tmp_path / "run",
        run=RUN,
    )
    results = [result for _, found in read_results(tmp_path / "run") for result in found]
    floor, loss = ([r for r in results if (r.metric, r.role) == ("kl_mean", role)] for role in ("floor", ""))
    assert [r.artifact for r in floor] == [f"{both[0].name} with an F32 KV cache"]
    assert 0 < floor[0].value < loss[0].value
