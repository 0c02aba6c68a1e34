"""Speed in vLLM, with a stand-in for its package: everything that was asked for is counted; answers that
cannot be are one line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_vllm import toy_vllm

from benchmarks.in_vllm import measure_in_vllm
from benchmarks.options import BenchSettings
from quantize.errors import BadInput, QuantwrightError, StepFailed, Unsupported
from quantize.recipe import RunOptions

RUN = RunOptions(device="cpu", threads=1, progress=False)
ASKED = BenchSettings(prefill=9, decode=5, repetitions=3, depths=[0, 4, 61], batches=[1, 3])
#: whatever it is asked, it answers with its next line
ANSWERING = """#!{python}
import os, sys
with open(int(sys.argv[3]), "w") as answers:
    for answer, _ in zip({answers!r}, sys.stdin):
        print(answer, file=answers, flush=True)
"""
OPENED: dict[str, Any] = {
    "version": "1", "torch": "2", "dtype": "bfloat16", "quantization": "", "device": "cpu",
    "import_seconds": 1.5, "load_seconds": 0.5, "rss_before_load_bytes": 9, "kv_cache_bytes": None,
}  # fmt: skip
TAKEN: dict[str, Any] = {
    "warm_up_seconds": 0.1, "prefill_seconds": [0.5], "first_token_seconds": [0.6],
    "step_seconds": [[[0.1, 0.2]]], "peak_rss_bytes": 10,
}  # fmt: skip
SMALL = BenchSettings(prefill=8, decode=2, repetitions=1)


@pytest.fixture
def model(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(num_hidden_layers=1, max_position_embeddings=64)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_vllm(tmp_path_factory.mktemp("toy"))


def test_every_step_is_counted(model: Path, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTWRIGHT_VLLM", str(toy))
    raw = measure_in_vllm(model, RUN, ASKED)
    assert (raw["prefill"], raw["context"]) == (9, 64)
    assert [batch["batch"] for batch in raw["batches"]] == [1, 3]
    for batch in raw["batches"]:
        assert len(batch["prefill_seconds"]) == len(batch["first_token_seconds"]) == 3
        for computed, first in zip(batch["prefill_seconds"], batch["first_token_seconds"], strict=True):
            assert 0 < computed < first
        # after 61 of 64 tokens there is room for three
        assert [(test["depth"], test["decode"]) for test in batch["decodes"]] == [(0, 5), (4, 5), (61, 3)]
        for test in batch["decodes"]:
            assert [len(steps) for steps in test["step_seconds"]] == [test["decode"]] * 3
            assert min(min(steps) for steps in test["step_seconds"]) > 0
    assert 0 < raw["rss_before_load_bytes"] <= raw["peak_rss_bytes"]
    assert raw["runtime"] == {
        "backend": "vllm", "version": "0.0.toy", "torch": raw["runtime"]["torch"], "dtype": "bfloat16",
        "quantization": "", "device": "toy", "kv_cache_bytes": 1 << 20, "format": "dense", "threads": 1,
        "compiled": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("crowded", Unsupported, "3 sequences of .* are not computed at once: vLLM's cache is too small"),
        ("refuses", Unsupported, "this toy opens nothing"),
        ("ends", StepFailed, "exit code 7"),
    ],
)
def test_what_it_cannot_do_is_one_line(
    model: Path, toy: Path, monkeypatch: pytest.MonkeyPatch, how: str, kind: type[QuantwrightError],
    words: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("QUANTWRIGHT_VLLM", str(toy))
    monkeypatch.setenv("TOY_VLLM", how)
    with pytest.raises(kind, match=words) as raised:
        measure_in_vllm(model, RUN, ASKED)
    assert "\n" not in str(raised.value)


def answering(folder: Path, monkeypatch: pytest.MonkeyPatch, *answers: object) -> None:
    python = folder / "python"
    lines = [answer if isinstance(answer, str) else json.dumps(answer) for answer in answers]
    python.write_text(ANSWERING.format(python=sys.executable, answers=lines), encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setenv("QUANTWRIGHT_VLLM", str(python))


def test_its_answers_become_samples(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(tmp_path, monkeypatch, OPENED, TAKEN)
    raw = measure_in_vllm(model, RUN, SMALL)
    assert (raw["import_seconds"], raw["load_seconds"], raw["peak_rss_bytes"]) == (1.5, 0.5, 10)
    assert raw["batches"] == [
        {
            "batch": 1, "warm_up_seconds": 0.1, "prefill_seconds": [0.5], "first_token_seconds": [0.6],
            "decodes": [{"depth": 0, "decode": 2, "step_seconds": [[0.1, 0.2]]}],
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("opened", "taken", "words"),
    [
        ("nonsense", {}, "no JSON"),
        ("[1]", {}, "no JSON object"),
        ({}, {}, "cannot be read: version"),
        ({"load_seconds": "NaN"}, {}, "cannot be read: load_seconds"),
        ({"version": "1" * 300}, {}, "cannot be read: version"),
        ({"load_seconds": float("inf")}, {}, "cannot be read: load_seconds"),
        ({"rss_before_load_bytes": -1}, {}, "cannot be read: rss_before_load_bytes"),
        (OPENED, {"prefill_seconds": [0]}, "cannot be read: prefill_seconds.0"),
        (OPENED, {"prefill_seconds": 5}, "cannot be read: prefill_seconds"),
        (OPENED, {"peak_rss_bytes": 1e400}, "cannot be read: peak_rss_bytes"),
        (OPENED, {"step_seconds": [[[0.1, -0.1]]]}, r"cannot be read: step_seconds.0.0.1"),
        (OPENED, {"prefill_seconds": []}, "did not measure what it was asked for"),
        (OPENED, {"step_seconds": [[[0.1]]]}, "did not measure what it was asked for"),
        (OPENED, {"step_seconds": []}, "did not measure what it was asked for"),
        (OPENED, "", "no JSON"),
    ],
)
def test_answers_that_cannot_be_are_one_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Any, taken: Any, words: str
) -> None:
    first = {**OPENED, **opened} if isinstance(opened, dict) and opened else opened
    answering(tmp_path, monkeypatch, first, {**TAKEN, **taken} if isinstance(taken, dict) else taken)
    with pytest.raises(StepFailed, match=words) as raised:
        measure_in_vllm(model, RUN, SMALL)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


def test_what_vllm_is_not_asked_for(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTWRIGHT_VLLM", str(tmp_path / "nothing"))
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(BadInput, match="is a GGUF file"):
        measure_in_vllm(tmp_path / "a.gguf", RUN, SMALL)
    with pytest.raises(BadInput, match="cannot quantize while loading to bnb-nf4"):
        measure_in_vllm(model, RUN, SMALL, load_as="bnb-nf4")
    with pytest.raises(BadInput, match="--attention"):
        measure_in_vllm(model, RUN, BenchSettings(attention="eager"))
    with pytest.raises(BadInput, match="names no Python"):
        measure_in_vllm(model, RUN, SMALL)
