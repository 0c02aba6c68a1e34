"""What lies in a run folder may be somebody else's, or half written: it then counts as not there."""

import json
from pathlib import Path
from typing import Any

import pytest
from fuzzing import faults, mutations

from jobs.cache_bucket import open_cache
from jobs.folder import read_jobs, states, unused
from jobs.rates import estimate_seconds, rates_file, read_samples
from jobs.records import Record, Records
from quantize.errors import BadInput

JOBS: dict[str, Any] = {"/job.yaml": {"steps": ["convert:m:float32"], "names": ["artifacts/m/float32"]}}
SAMPLE = {"kind": "eval", "work": 2.0, "wall_s": 3.0, "peak_rss_bytes": 5, "threads": 1}


def test_records_and_jobs_of_a_run_folder(tmp_path: Path) -> None:
    records = Records(tmp_path)
    record = Record(
        "convert:m:float32", "key", "done", planned={"size_bytes": 5}, detail={"a": 1}, previous=[1, 2]
    )
    records.write("convert.m.float32", record)
    assert records.read("convert.m.float32") == record
    (tmp_path / "jobs.json").write_text(json.dumps(JOBS))
    assert read_jobs(tmp_path) == JOBS
    path = tmp_path / "steps" / "convert.m.float32.json"
    good = json.loads(path.read_text())

    def with_record(document: Any) -> object:
        path.write_text(json.dumps(document))
        return states(tmp_path)

    def with_jobs(document: Any) -> object:
        (tmp_path / "jobs.json").write_text(json.dumps(document))
        path.write_text(json.dumps(good))
        return list(unused(tmp_path)), states(tmp_path)

    assert faults(with_record, mutations(good), seconds=10) == []
    assert faults(with_jobs, mutations(JOBS), seconds=10) == []


def test_rates_that_are_none(own_rates: None) -> None:
    rates_file().parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(SAMPLE),
        "{",
        "[" * 10_000,
        *(json.dumps(changed) for _, changed in mutations(SAMPLE)),
    ]
    rates_file().write_text("\n".join(lines))
    samples = read_samples()
    assert samples[0].wall_s == 3.0
    assert estimate_seconds("eval", 2.0, 1, samples).high_s < 1e17


@pytest.mark.parametrize("place", ["ftp://", "ftp://user:secret@localhost:1/x", "nosuch://x", "memory://x"])
def test_a_cache_that_cannot_be_is_one_line(place: str) -> None:
    with pytest.raises(BadInput, match="--cache") as caught:
        open_cache(place, print)
    assert "\n" not in str(caught.value)
