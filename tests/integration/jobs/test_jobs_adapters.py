"""Jobs with a LoRA and with publication: the adapter is in the key and in the manifest, repositories hold
what was made."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from quantize.artifact.artifact import Artifact
from quantize.results import read_results
from quantize.sources.adapter import adapter_record

JOB = """\
models: [{source: checkpoint, name: small, adapters: [tuned]}]
recipes: [gguf-f32, gguf-q8_0]
verify: tensors
report: false
publish: {repo: "someone/{model}-{format}", license: mit}
resources: {threads: 1}
"""


pytestmark = pytest.mark.usefixtures("own_rates")


def write_lora(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    folder.mkdir(exist_ok=True)
    tensors = {
        f"{prefix}.lora_A.weight": rng.normal(size=(4, 256)).astype(np.float32),
        f"{prefix}.lora_B.weight": rng.normal(size=(256, 4)).astype(np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "init_lora_weights": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.fixture
def job(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    (tmp_path / "checkpoint").symlink_to(make_checkpoint(num_hidden_layers=1))
    write_lora(tmp_path / "tuned", 0)
    (tmp_path / "job.yaml").write_text(JOB, encoding="utf-8")
    return tmp_path / "job.yaml"


def run(job: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quantize.cli", "run", str(job), "-o", str(job.parent / "run"), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_an_adapter_is_in_the_manifest_and_in_the_key_and_the_result_is_published(job: Path) -> None:
    done = run(job)
    assert done.returncode == 0, done.stderr
    artifact = Artifact.load(job.parent / "run" / "artifacts" / "small-tuned" / "gguf-f32")
    assert artifact.manifest.adapter == adapter_record(job.parent / "tuned")
    assert artifact.manifest.adapter.name == "tuned"
    assert artifact.manifest.source.id.endswith("+tuned")
    repository = job.parent / "run" / "published" / "someone" / "small-tuned-GGUF"
    assert len(list(repository.glob("*.gguf"))) == 2
    assert "license: mit" in (repository / "README.md").read_text()
    again = run(job)
    assert "3 already done" in again.stderr
    write_lora(job.parent / "tuned", 1)
    other = run(job)
    assert "3 done" in other.stderr
    assert Artifact.load(artifact.folder).digest != artifact.digest


@pytest.mark.long
def test_a_merged_model_is_measured_against_itself(job: Path) -> None:
    more = (
        "--set",
        "evaluate={text: held-out, tokens: 600}",
        "--set",
        "recipes=[gguf-f32]",
        "--set",
        "publish=null",
    )
    done = run(job, *more)
    assert done.returncode == 0, done.stderr
    rows = {
        subject.recipe: {r.metric: r.value for r in results}
        for subject, results in read_results(job.parent / "run")
        if results
    }
    assert set(rows) == {"bfloat16", "gguf-f32"}
    assert rows["gguf-f32"]["kl_mean"] < 1e-6


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("publish.repo", "someone/{model", "braces may contain only {model} and {format}"),
        ("publish.repo", "someone/{size}", "braces may contain only {model} and {format}"),
        ("publish.repo", "nobody", "publish.repo"),
        ("publish.recipes", "[bnb-nf4]", "is not made by this job"),
        (
            "publish",
            "{repo: a/b}\nmodels: [checkpoint, checkpoint]",
            "several repositories would be named a/b",
        ),
        ("models.0.adapters", "[nothing]", "no such folder"),
        ("models.0.adapters", "[checkpoint]", "no adapter_config.json"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(job: Path, key: str, value: str, expected: str) -> None:
    value, _, models = value.partition("\nmodels: ")
    more = ["--set", f"{key}='{value}'" if "{model" in value or "{size" in value else f"{key}={value}"]
    done = run(job, *more, *(["--set", f"models={models}"] if models else []))
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not (job.parent / "run").exists()
