"""Results files and manifests with one place changed, and damaged ones: a report, a repository, or one
line."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fuzzing import damaged, faults, mutations, places, replaced, sample
from sample_artifact import make_artifact
from sample_run import MODEL, quality, speed, subject, task

import reports
from quantize.artifact.artifact import AdapterRecord, CalibrationRecord
from quantize.results import EvalResult, Subject, results_path, write_results
from reports.card import CardOptions
from reports.publish import prepare

CHUNKS = 6
#: beyond what every field is set to: numbers at the edge of what can be squared, drawn and written
NUMBERS = (1e-320, 1e99, -1e99, 5e-100, 1e200, 2**53, 0.5)


def items(text: str) -> dict[str, Any]:
    return {"items": [{"prompt": "p", "text": text, "ids": [1, 2]}]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A reference and an artifact, small, with every kind of result."""
    source = Subject(
        name=MODEL, recipe="bfloat16", model=MODEL, digest="ef" * 32, size_bytes=10, role="reference"
    )
    rows = [
        *quality(source, 0, "transformers", "reference", chunks=CHUNKS),
        *task(source, "t", 0.5, "reference", items=12, flips=2),
    ]
    rows.append(EvalResult(MODEL, "generations", "greedy", None, role="reference", detail=items("other")))
    write_results(results_path(tmp_path, "reference", "eval"), source, rows)
    s = subject("gguf-q8_0", notes=({"tensor": "a", "what": "b", "why": "c"},), name="a", digest="")
    rows = [
        *quality(s, 0.01, "llama.cpp", chunks=CHUNKS),
        *task(s, "t", 0.5, items=12, flips=2),
        *speed(s, 100, "llama.cpp"),
    ]
    rows.append(EvalResult("a", "generations", "greedy", None, detail=items("text")))
    rows.append(replace(rows[0], artifact="floor", role="floor", metric="kl_mean", value=0.001))
    paired = {"difference": 0.1, "interval": [0.0, 0.2], "p_mcnemar": 0.1}
    rows = [
        replace(r, detail=r.detail | {"vs_reference": paired, "remarks": ["r"], "typed": "t"})
        if r.task
        else r
        for r in rows
    ]
    write_results(results_path(tmp_path, "a", "eval"), s, rows)
    return tmp_path


@pytest.fixture
def attempt(run: Path) -> Callable[[bytes], object]:
    path = results_path(run, "a", "eval")

    def reported(raw: bytes) -> object:
        path.write_bytes(raw)
        return reports.build([run])

    reported(path.read_bytes())
    return reported


def inputs(run: Path) -> Iterator[tuple[str, bytes]]:
    raw = results_path(run, "a", "eval").read_bytes()
    document = json.loads(raw)
    for label, changed in mutations(document):
        yield label, json.dumps(changed).encode()
    for place in places(document):
        for number in NUMBERS:
            yield f"{place}={number}", json.dumps(replaced(document, place, number)).encode()
    for index, row in enumerate(document["results"]):  # all numbers of a row at once
        for number in (*NUMBERS, 0, -1):
            numbers = {key: number for key in ("value", "stderr") if row[key] is not None}
            numbers |= {
                "samples": [number] * len(row["samples"]),
                "interval": row["interval"] and [number, number],
            }
            yield (
                f"row {index} {number}",
                json.dumps(replaced(document, ("results", index), row | numbers)).encode(),
            )
    yield from damaged(raw, 500)


def test_results_changed_in_one_place(attempt: Callable[[bytes], object], run: Path) -> None:
    assert faults(attempt, sample(inputs(run), 60), seconds=20) == []


@pytest.mark.long
def test_every_change_of_results(attempt: Callable[[bytes], object], run: Path) -> None:
    assert faults(attempt, inputs(run), seconds=20) == []


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    artifact = make_artifact(
        tmp_path / "a",
        calibration=CalibrationRecord(
            source="t", sha256="0" * 64, ids_sha256="0", tokens=9, sequence_length=3, seed=1
        ),
        adapter=AdapterRecord(name="lora", sha256="0" * 64),
    )
    return artifact.folder / "manifest.json"


def manifests(path: Path) -> Iterator[tuple[str, bytes]]:
    raw = path.read_bytes()
    for label, changed in mutations(json.loads(raw)):
        yield label, json.dumps(changed).encode()
    name = next(iter(json.loads(raw)["files"]))
    for other in ("../x.gguf", "/etc/passwd", "a/../../x", "C:x", "", "a\nb", "x" * 2000):
        yield f"named {other[:20]!r}", raw.replace(json.dumps(name).encode(), json.dumps(other).encode())
    yield "deep", raw.replace(b'"details": {}', b'"details": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
    yield from damaged(raw, 300)


def published(path: Path) -> Callable[[bytes], object]:
    def attempt(raw: bytes) -> object:
        path.write_bytes(raw)
        return prepare([path.parent], [], CardOptions("me/x"), allow_unverified=True)

    return attempt


def test_manifests_changed_in_one_place(manifest: Path) -> None:
    assert faults(published(manifest), sample(manifests(manifest), 250), seconds=20) == []


@pytest.mark.long
def test_every_change_of_a_manifest(manifest: Path) -> None:
    assert faults(published(manifest), manifests(manifest), seconds=20) == []
