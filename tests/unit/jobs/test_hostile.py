"""Job files with one place changed, and damaged ones: loaded, planned and estimated, or refused in one
line."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import damaged, faults, mutations, sample

from jobs.estimate import estimate_plan
from jobs.load import load_job
from jobs.plan import build_plan

#: every key that a job may have
JOB: dict[str, Any] = {
    "models": [
        {
            "source": "model", "name": "small", "recipes": ["float32", {"method": "gptq",
            "matrix": {"bits": [3, 4]}}],
            "skip": ["gptq-int4"], "adapters": [], "calibration": "stdlib", "trust_remote_code": False,
        },
        "model",
    ],
    "recipes": ["gguf-q4_k_m", "bnb-nf4:double_quant=true", {"method": "gguf", "type": "q8_0"}],
    "calibration": {"source": "text.txt", "tokens": 512, "sequence_length": 64, "seed": 1},
    "verify": "tensors",
    "evaluate": {
        "text": "text.txt", "metrics": ["perplexity"], "protocol": "llamacpp-512", "ids": "source",
        "tasks": ["held-out"],
        "tokens": 100, "limit": 5, "num_fewshot": 0, "apply_chat_template": False, "prompts": "text.txt",
        "generate": 4,
        "cache_limit": "1GiB", "floors": False, "weights_only": "none",
    },
    "benchmark": {"prefill": 8, "decode": 4, "repetitions": 1, "rounds": 1, "depths": [0], "batches": [1],
    "compile": False},
    "publish": {"repo": "me/{model}-{format}", "recipes": ["gguf-q4_k_m"], "license": "mit",
    "base_model": "a/b"},
    "cache": "cache",
    "resources": {
        "device": "cpu", "dtype": "auto", "threads": 1, "memory": "8GiB", "parallel": 1,
        "time_limit_minutes": 5, "retries": 1,
        "nodes": {"convert": "quiet"},
    },
}  # fmt: skip
STRANGE = (
    "~nouser/x",
    "..",
    "a:b",
    "",
    "x" * 5000,
    "/dev/zero",
    "a\x00b",
    "ftp://",
    ["a"] * 3,
    {"a": "b"},
    {1: 2},
)


@pytest.fixture
def attempt(demo_checkpoint: Path, tmp_path: Path) -> Callable[[bytes], object]:
    (tmp_path / "model").symlink_to(demo_checkpoint)
    (tmp_path / "text.txt").write_text("one two three\n" * 100)
    path = tmp_path / "job.yaml"

    def planned(raw: bytes) -> object:
        path.write_bytes(raw)
        job = load_job(path)
        return estimate_plan(job, build_plan(job, tmp_path), tmp_path / "run")

    planned(json.dumps(JOB).encode())
    return planned


def inputs() -> Iterator[tuple[str, bytes]]:
    for label, job in mutations(JOB):
        yield label, json.dumps(job).encode()
    for label, job in mutations(JOB, STRANGE):
        yield f"strange {label}", yaml.safe_dump(job).encode()
    text = yaml.safe_dump(JOB).encode()
    yield from damaged(text, 2000)
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
    )
    itself = "models: &a [*a]\n"
    for odd in (
        bomb,
        itself,
        "[" * 100_000,
        "? [a]\n: b\n",
        "a: !!bool x",
        "a: " + "1:" * 400_000 + "1",
        "%YAML 9.9\n---\na",
        "\ufeff" + GOOD,
    ):
        yield odd[:40], odd.encode()


GOOD = "models: [model]\nrecipes: [float32]\n"


def test_jobs_changed_in_one_place(attempt: Callable[[bytes], object]) -> None:
    assert faults(attempt, sample(inputs(), 120), seconds=20) == []


@pytest.mark.long
def test_every_change_of_a_job(attempt: Callable[[bytes], object]) -> None:
    assert faults(attempt, inputs(), seconds=20) == []
