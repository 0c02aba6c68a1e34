"""Ray nodes that do not see the run folder: files go through S3, and what the driver commits is what one
machine makes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from job_runs import digests, qualities, until

from jobs.bucket import Bucket, BucketError
from jobs.ray_task import Order, run_order
from jobs.transfer import pull, push

ray = pytest.importorskip("ray", reason="Ray is not installed (extra: ray)")

JOB = """\
models: [checkpoint]
recipes: [gguf-q8_0, gguf-q4_0]
verify: none
evaluate: {text: text.txt, tokens: 1100}
resources: {threads: 1}
"""
STORE = "s3://bucket/store"


@pytest.fixture(autouse=True)
def no_cluster(own_rates: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def job(make_checkpoint: Callable[..., Path], demo_checkpoint: Path, tmp_path: Path) -> Path:
    (tmp_path / "checkpoint").symlink_to(make_checkpoint(num_hidden_layers=1))
    (tmp_path / "text.txt").write_text(
        "The library keeps its books in order of their arrival. " * 150, encoding="utf-8"
    )
    (tmp_path / "job.yaml").write_text(JOB, encoding="utf-8")
    return tmp_path / "job.yaml"


class Nodes:
    """A head that runs nothing, and nodes of one core, each with a folder for temporary files."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folder = folder
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self.address = str(self.cluster.address)
        self.nodes: list[Any] = []

    def add(self, count: int = 1) -> None:
        for _ in range(count):
            place = self.folder / f"node{len(self.nodes)}"
            place.mkdir(exist_ok=True)
            # Ray's workers are nice by 15 otherwise: whatever else runs on this machine would keep them from
            # their work.
            variables = {"TMPDIR": str(place), "RAY_worker_niceness": "0"}
            self.nodes.append(self.cluster.add_node(num_cpus=1, env_vars=variables))

    def steps(self, *which: Any) -> list[psutil.Process]:
        """Processes of steps that run on these nodes, by default on all; those of Ray aside."""
        found = []
        for node in which or self.nodes:
            (raylet,) = node.all_processes["raylet"]
            for process in psutil.Process(raylet.process.pid).children(recursive=True):
                try:
                    if "quantize.process" in process.cmdline():
                        found.append(process)
                except psutil.Error:
                    continue
        return found

    def work_folders(self) -> list[Path]:
        return sorted(self.folder.glob("node*/quantwright-*/step-*"))


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path)
    made.add(2)
    yield made
    made.cluster.shutdown()


def start(job: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "quantize.cli", "run", str(job), "-o", str(run), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], expected: int = 0) -> str:
    _, said = process.communicate(timeout=600)
    assert process.returncode == expected, said
    assert "Traceback" not in said
    return said


def on_ray(nodes: Nodes) -> list[str]:
    return ["--executor", "ray", "--address", nodes.address, "--store", STORE]


#: Runs a command with file systems of its own.
APART = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-rm"]


def can_mount() -> bool:
    command = [*APART, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True).returncode == 0


def test_nodes_that_do_not_see_the_run_folder(job: Path, tmp_path: Path, nodes: Nodes, s3: Any) -> None:
    """The driver's run folder is a file system of the driver's own, where the kernel lets us mount one."""
    run, brought = tmp_path / "run", tmp_path / "brought"
    run.mkdir()
    command = [sys.executable, "-m", "quantize.cli", "run", str(job), "-o", str(run), *on_ray(nodes)]
    if can_mount():
        script = f'mount -t tmpfs tmpfs {run} && "$@" && cp -r {run}/. {brought}'
        command = [*APART, "sh", "-c", script, "sh", *command]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for step in until(nodes.steps, process):
        place = Path(step.cwd())
        assert place.relative_to(tmp_path).parts[0].startswith("node")
        assert str(run) not in " ".join([*step.cmdline(), *step.environ().values()])
    said = finish(process)
    assert "6 done" in said
    if can_mount():
        assert list(run.iterdir()) == []
    else:
        shutil.copytree(run, brought)
    assert nodes.work_folders() == []

    finish(start(job, tmp_path / "local"))
    assert digests(brought) == digests(tmp_path / "local")
    assert len(digests(brought)) == 2
    assert qualities(brought) == qualities(tmp_path / "local")
    for made in ("report/index.html", "logs/convert.checkpoint.gguf-q8_0.log"):
        assert (brought / made).is_file()
    log = (brought / "logs" / "eval.checkpoint.gguf-q4_0.log").read_text(encoding="utf-8")
    assert log.startswith("$ quantwright eval artifacts/checkpoint/gguf-q4_0")
    assert "stored logits" in log
    assert len(list((brought / "cache").glob("reference-*"))) == 1
    assert list((brought / ".work").iterdir()) == []


@pytest.mark.long
def test_a_driver_a_node_and_the_store_are_lost(job: Path, tmp_path: Path, nodes: Nodes, s3: Any) -> None:
    run, ray_options = tmp_path / "run", on_ray(nodes)
    process = start(job, run, *ray_options)
    steps = until(nodes.steps, process)
    process.kill()
    process.wait()
    assert psutil.wait_procs(steps, timeout=30)[1] == []
    assert digests(run) == {}

    process = start(job, run, *ray_options)
    busy = until(lambda: next((node for node in nodes.nodes if nodes.steps(node)), None), process)
    nodes.cluster.remove_node(busy, allow_graceful=False)
    nodes.nodes.remove(busy)
    nodes.add()
    said = finish(process)
    assert "is gone; retrying" in said
    assert "6 done" in said
    done = digests(run)

    s3.files().rm("bucket/store/objects", recursive=True)  # all of it can come from the run folder again
    (result,) = (run / "results").glob("*q4_0-*.eval.json")
    result.unlink()
    said = finish(start(job, run, *ray_options))
    assert "eval checkpoint gguf-q4_0: done in" in said
    assert "convert checkpoint gguf-q4_0: already done" in said
    assert "stored logits" in (run / "logs" / "eval.checkpoint.gguf-q4_0.log").read_text(encoding="utf-8")

    process = start(job, run, *ray_options, "--set", "recipes=[gguf-q8_0, gguf-q4_0, gguf-q5_0]")
    until(nodes.steps, process)
    s3.stop()
    said = finish(process, 1)
    assert "Could not connect" in said
    assert "convert checkpoint gguf-q5_0: FAILED" in said
    assert digests(run) == done

    finish(start(job, tmp_path / "local"))
    assert done == digests(tmp_path / "local")
    assert list((run / ".work").iterdir()) == []


@pytest.mark.long
def test_a_node_without_the_model_leaves_the_step_to_another(job: Path, tmp_path: Path, s3: Any) -> None:
    """Its checkpoint is hidden under an empty folder of a mount namespace; while it is alone, the step fails
    and says why."""
    if not can_mount():
        pytest.skip("no mount namespaces here")
    nodes = Nodes(tmp_path)
    model, place = (tmp_path / "checkpoint").resolve(), tmp_path / "blind"
    place.mkdir()
    script = (
        f"mount -t tmpfs tmpfs {model} && TMPDIR={place} exec ray start --address {nodes.address} "
        "--num-cpus 1 --block"
    )
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
    }
    blind = subprocess.Popen([*APART, "sh", "-c", script], env=environment, stdout=subprocess.DEVNULL)
    try:
        until(lambda: sum(node["Alive"] for node in _nodes_of(nodes.address)) == 2, blind)
        convert = ["--set", "evaluate=null", "--set", "recipes=[gguf-q8_0, gguf-q4_0]"]
        said = finish(start(job, tmp_path / "alone", *on_ray(nodes), *convert), 1)
        assert f"has no usable {model}" in said
        assert "copy the driver's there" in said
        nodes.add()
        said = finish(start(job, tmp_path / "run", *on_ray(nodes), *convert))
        assert f"has no usable {model}" in said
        assert "retrying" in said
        assert len(digests(tmp_path / "run")) == 2
    finally:
        blind.terminate()
        blind.wait()
        nodes.cluster.shutdown()


def _nodes_of(address: str) -> list[dict[str, Any]]:
    code = f"import json, ray; ray.init({address!r}, logging_level='ERROR'); print(json.dumps(ray.nodes()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def order(**changes: Any) -> Order:
    """Of a step that only prints the version."""
    given = {
        "arguments": ("--version",),
        "run": "",
        "stage": ".work/step",
        "log": "",
        "lock": "",
        "threads": 1,
    }
    more = {
        "memory_bytes": None,
        "seconds": None,
        "versions": {},
        "environment": {},
        "store": STORE,
        "begun": "begun/1",
    }
    return Order(**{**given, **more, **changes})


@pytest.fixture
def own_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process as a node."""
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"quantwright-{os.getuid()}"


def test_a_node_that_lacks_what_the_driver_has_refuses(
    job: Path, own_node: Path, tmp_path: Path, s3: Any
) -> None:
    text, model = tmp_path / "text.txt", (tmp_path / "checkpoint").resolve()
    assert "has no usable" in run_order(order(local={str(tmp_path / "nothing"): "0" * 64})).refused
    assert "has another" in run_order(order(local={str(text): "0" * 64})).refused
    assert "has another" in run_order(order(local={str(model): "0" * 64})).refused
    assert "no config.json" in run_order(order(local={str(tmp_path): "0" * 64})).refused
    from quantize.hashes import sha256_file
    from quantize.sources.opening import open_checkpoint

    good = {str(text): sha256_file(text), str(model): open_checkpoint(model).digest}
    done = run_order(order(local=good))
    assert done.code == 0
    assert done.log.startswith(b"$ quantwright --version")


def test_files_of_a_killed_worker_are_cleared_away(own_node: Path, s3: Any) -> None:
    (own_node / "step-12-0123456789ab" / "artifacts").mkdir(parents=True)
    (own_node / "step-12-0123456789ab.lock").touch()
    own_node.chmod(0o700)
    assert run_order(order()).code == 0
    assert list(own_node.glob("step-*")) == []


def test_a_damaged_object_is_deleted_and_sent_again(own_node: Path, tmp_path: Path, s3: Any) -> None:
    from quantize.hashes import sha256_file

    (tmp_path / "file").write_bytes(bytes(range(256)))
    inputs = {"file": sha256_file(tmp_path / "file")}
    bucket = Bucket(STORE, "--store")
    push(bucket, tmp_path, inputs)
    (place,) = s3.files().find("bucket/store/objects")
    s3.files().pipe_file(place, bytes(256))
    assert "arrived damaged" in run_order(order(inputs=inputs)).lost
    with pytest.raises(BucketError):
        pull(bucket, inputs, tmp_path / "arrived")
    push(bucket, tmp_path, inputs)
    assert run_order(order(inputs=inputs)).code == 0
    s3.stop()
    assert "Could not connect" in run_order(order(inputs=inputs)).lost


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--store", STORE], "give --executor ray too"),
        (["--executor", "ray", "--store", "/a/folder"], "such as s3://bucket/prefix"),
        (["--executor", "ray", "--store", "s3://nobucket/x"], "The specified bucket does not exist"),
    ],
)
def test_what_is_wrong_with_the_store_is_said_before_anything_runs(
    job: Path, tmp_path: Path, s3: Any, more: list[str], expected: str
) -> None:
    said = finish(start(job, tmp_path / "run", *more), 2)
    assert expected in said
    assert not (tmp_path / "run").exists()
