"""The same job on a real Ray cluster of several nodes: equal digests, a node killed in the middle, a driver
killed."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from job_runs import digests, qualities, until

from jobs.ray_task import Order, run_order
from jobs.records import Records

ray = pytest.importorskip("ray", reason="Ray is not installed (extra: ray)")

JOB = """\
models: [checkpoint]
recipes: [gguf-f16, gguf-q8_0, gguf-q4_0]
verify: none
report: false
resources: {threads: 1}
"""
MATRIX = """\
recipes: [bfloat16, gguf-q8_0, gguf-q4_k_m, gguf-q4_0, gptq-int4, quanto-int8, bnb-int8, bnb-nf4]
calibration: {source: stdlib, tokens: 2048, sequence_length: 128}
evaluate: {text: held-out, tokens: 1000}
benchmark: {prefill: 32, decode: 8, repetitions: 2}
resources: {threads: 1, nodes: {bench: quiet}}
"""


@pytest.fixture(autouse=True)
def no_cluster(own_rates: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


class RayCluster:
    """A head that runs nothing, and nodes of one core each; processes of this machine, as a test can have no
    more."""

    def __init__(self, nodes: int) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self.nodes: list[Any] = [self.add() for _ in range(nodes)]

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, **resources: float) -> Any:
        return self.cluster.add_node(num_cpus=1, resources=resources)

    def steps(self, node: Any) -> list[psutil.Process]:
        """Processes of steps that run on a node."""
        (raylet,) = node.all_processes["raylet"]
        try:
            family = psutil.Process(raylet.process.pid).children(recursive=True)
        except psutil.Error:
            return []
        return [process for process in family if "quantize.process" in _command_line(process)]

    def kill(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    made = RayCluster(2)
    yield made
    made.cluster.shutdown()


@pytest.fixture
def job(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    (tmp_path / "checkpoint").symlink_to(make_checkpoint(num_hidden_layers=1))
    path = tmp_path / "job.yaml"
    path.write_text(JOB, encoding="utf-8")
    return path


def start(job: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "quantize.cli", "run", str(job), "-o", str(run), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], timeout_s: float = 600) -> str:
    _, said = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, said
    return said


def test_a_cluster_started_here_makes_the_same(job: Path, tmp_path: Path) -> None:
    one = ["--set", "recipes=[gguf-q8_0]"]
    finish(start(job, tmp_path / "ray", "--executor", "ray", *one))
    finish(start(job, tmp_path / "local", *one))
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")
    assert len(digests(tmp_path / "ray")) == 1


@pytest.mark.long
def test_a_node_killed_in_the_middle_costs_nothing_but_time(
    job: Path, tmp_path: Path, cluster: RayCluster
) -> None:
    process = start(job, tmp_path / "ray", "--executor", "ray", "--address", cluster.address)
    busy = until(lambda: next((node for node in cluster.nodes if cluster.steps(node)), None), process)
    victims = cluster.steps(busy)
    cluster.kill(busy)
    said = finish(process)
    assert "is gone; retrying" in said
    assert not any(victim.is_running() for victim in victims)
    assert max(record.attempts for record in Records(tmp_path / "ray").all()) == 2
    finish(start(job, tmp_path / "local"))
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")
    assert len(digests(tmp_path / "ray")) == 3
    assert list((tmp_path / "ray" / ".work").iterdir()) == []


@pytest.mark.long
def test_a_killed_driver_leaves_nothing_running_and_is_resumed(
    job: Path, tmp_path: Path, cluster: RayCluster
) -> None:
    run = tmp_path / "run"
    for _ in range(2):
        process = start(job, run, "--executor", "ray", "--address", cluster.address)
        steps = until(lambda: [step for node in cluster.nodes for step in cluster.steps(node)], process)
        process.kill()
        process.wait()
        assert psutil.wait_procs(steps, timeout=30)[1] == []
    said = finish(start(job, run, "--executor", "ray", "--address", cluster.address))
    assert "FAILED" not in said
    finish(start(job, tmp_path / "local"))
    assert digests(run) == digests(tmp_path / "local")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_three_architectures_by_eight_recipes_with_nodes_coming_and_going(
    tmp_path: Path, demo_checkpoint: Path
) -> None:
    """Evaluated, benchmarked on one node, reported; artifacts and qualities equal those made here."""
    for family in ("llama", "qwen2", "mistral"):
        make_family(tmp_path / family, family, demo_checkpoint)
    job = tmp_path / "job.yaml"
    job.write_text("models: [llama, qwen2, mistral]\n" + MATRIX, encoding="utf-8")
    cluster = RayCluster(0)
    try:
        cluster.nodes += [cluster.add(), cluster.add(quiet=1)]
        process = start(job, tmp_path / "ray", "--executor", "ray", "--address", cluster.address)
        (first, quiet) = cluster.nodes
        until(lambda: cluster.steps(first) and len(digests(tmp_path / "ray")) > 1, process, 600)
        cluster.nodes.append(cluster.add())
        cluster.kill(first)
        said = finish(process, 3000)
        assert "is gone; retrying" in said
        assert cluster.nodes[0] is quiet
    finally:
        cluster.cluster.shutdown()
    finish(start(job, tmp_path / "local"), 3000)
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")
    assert len(digests(tmp_path / "ray")) == 24
    assert qualities(tmp_path / "ray") == qualities(tmp_path / "local")
    assert (tmp_path / "ray" / "report" / "index.html").is_file()


def make_family(folder: Path, family: str, demo: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4}
    ids = {"vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 256}
    config = AutoConfig.for_model(family, **sizes, **ids, num_key_value_heads=2, tie_word_embeddings=False)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, folder / name)


def order(tmp_path: Path, **changes: Any) -> Order:
    """Of a step that only prints the version."""
    (tmp_path / "stage").mkdir(exist_ok=True)
    paths = {name: str(tmp_path / name) for name in ("stage", "log", "lock")}
    given = {
        "arguments": ("--version",),
        "run": str(tmp_path),
        **paths,
        "threads": 1,
        "memory_bytes": None,
        "seconds": None,
    }
    return Order(**{**given, "versions": {}, "environment": {}, **changes})


def test_a_node_that_cannot_do_a_step_says_why(tmp_path: Path) -> None:
    assert run_order(order(tmp_path)).code == 0
    assert "does not see" in run_order(order(tmp_path, stage=str(tmp_path / "elsewhere"))).refused
    assert "install the same versions" in run_order(order(tmp_path, versions={"numpy": "0.1"})).refused
    assert "took longer" in run_order(order(tmp_path, seconds=0.01)).killed_for


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--address", "127.0.0.1:6379"], "give --executor ray too"),
        (["--executor", "ray", "--address", "127.0.0.1:1"], "no Ray cluster there"),
        (["--executor", "ray", "--set", "resources.device=cuda:1"], "Ray chooses the GPU"),
    ],
)
def test_what_is_wrong_with_the_cluster_is_said_before_anything_runs(
    job: Path, tmp_path: Path, more: list[str], expected: str
) -> None:
    process = start(job, tmp_path / "run", *more)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert expected in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
