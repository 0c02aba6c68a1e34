"""Steps as tasks of a Ray cluster, each with the cores, memory and GPU that it needs; artifacts lie in the shared run folder.

A task starts the very process that would run on this machine (``quantize.jobs.ray_task``) and watches it. Ray's own retries
are off: the runner starts a step again whose node is lost, so that its record says so. Benchmarks of one model run on one
node, alone on it, after everything else: only then can their speeds be compared.
"""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantize.errors import BadInput, StepFailed
from quantize.jobs.estimate import StepCost, spell
from quantize.jobs.executor import Executor, Handle
from quantize.jobs.keys import version
from quantize.jobs.spec import Job
from quantize.jobs.steps import Step, device, step_threads

#: What a step may need to know of the environment in which the job was started.
FORWARDED = ("HF_", "MODELSCOPE_", "QUANTWRIGHT_")
TOUCH = 0.001  # of a custom resource that only says where a step may run
LONGEST_POLL_S = 0.2
CONNECT_S = 10.0
TOKEN = Path("~/.ray/auth_token")


class RayStep:
    """One submitted task. Until a node has taken it, it waits in Ray's queue and no time counts."""

    def __init__(self, ref: Any, stage: Path, log: Path):
        self.ref, self.stage, self.log = ref, stage, log
        self.pid = 0  # of no use on another machine
        self.killed_for = self.lost = self.node = ""
        self.peak_rss_bytes = 0
        self._code: int | None = None
        self._wall_s: float | None = None
        self._seen = 0.0

    @property
    def started(self) -> bool:
        if not self._seen and (self.stage / "node").is_file():
            self._seen = time.monotonic()
        return bool(self._seen)

    @property
    def wall_s(self) -> float:
        if self._wall_s is not None:
            return self._wall_s
        return time.monotonic() - self._seen if self.started else 0.0

    def poll(self) -> int | None:
        """Errors: StepFailed where the cluster itself is gone."""
        import ray

        if self._code is None and ray.wait([self.ref], timeout=0)[0]:
            self._code = self._collect(ray)
        return self._code

    def _collect(self, ray: Any) -> int:
        gone = (ray.exceptions.NodeDiedError, ray.exceptions.WorkerCrashedError, ray.exceptions.TaskUnschedulableError)
        try:
            ended = ray.get(self.ref)
        except ray.exceptions.OutOfMemoryError:
            self.killed_for = self.killed_for or "Ray stopped it: its node was running out of memory"
            return -9
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except ray.exceptions.TaskCancelledError:
            return -9
        except gone:
            with contextlib.suppress(OSError):
                self.node = (self.stage / "node").read_text(encoding="utf-8").strip()
            self.lost = "" if self.killed_for else f"its node {self.node} is gone" if self.node else "its node is gone"
            return -9
        except ray.exceptions.RayError as error:
            raise StepFailed(
                f"Ray: {str(error).splitlines()[0]}; run the same command again: only what is missing is done"
            ) from None
        self.node, self.peak_rss_bytes, self._wall_s = ended.node, ended.peak_rss_bytes, ended.wall_s
        self.killed_for = self.killed_for or ended.killed_for
        return int(ended.code)

    def kill(self, why: str) -> None:
        import ray

        if self.killed_for:
            return
        self.killed_for = why
        with contextlib.suppress(ray.exceptions.RayError):
            ray.cancel(self.ref, force=True)


class OnRay(Executor):
    """``address``: of a cluster that runs (``host:port`` or ``auto``; default: $RAY_ADDRESS, else one is started here).

    Errors: BadInput where Ray is not installed, the cluster cannot be reached, or no node of it can hold one of the steps.
    """

    def __init__(self, job: Job, run: Path, costs: Mapping[str, StepCost], address: str | None):
        super().__init__(job, run, costs)
        self.threads = step_threads(job)
        self.device = device(job.resources.device)
        if ":" in self.device:
            raise BadInput(f"resources.device {self.device}: Ray chooses the GPU of each step; say cuda")
        _connect(address)
        self.bench_nodes: dict[str, str] = {}  # model -> node
        try:
            self._refuse_what_no_node_holds()
        except BaseException:
            self.close()
            raise

    # -- placing steps -------------------------------------------------------------------------------------------------------

    def fits(self, step: Step, running: Sequence[Step], waiting: Sequence[Step]) -> bool:
        """Ray places what is submitted; only benchmarks are held back, until nothing else of the job is left to do."""
        limit = self.job.resources.parallel
        if limit and len(running) >= limit:
            return False
        return step.kind != "bench" or all(other.kind in ("bench", "report", "publish") for other in (*running, *waiting))

    def _needs(self, step: Step) -> dict[str, Any]:
        """Resources as Ray's options name them."""
        custom = getattr(self.job.resources.nodes, step.kind)
        light = step.kind in ("report", "publish")
        cost = self.costs.get(step.id)
        return {
            "num_cpus": 1 if light else self.threads,
            "num_gpus": 0 if light or self.device == "cpu" or (self.device == "auto" and not self._gpus()) else 1,
            "memory": cost.memory_bytes if cost else 0,
            "resources": {custom: TOUCH} if custom else {},
        }

    def _gpus(self) -> bool:
        return any(node["Resources"].get("GPU") for node in _nodes())

    def _refuse_what_no_node_holds(self) -> None:
        for name in self.costs:
            self._nodes_for(Step(name, name.partition(":")[0], (), Path()))

    def _nodes_for(self, step: Step) -> list[dict[str, Any]]:
        """Living nodes that could hold it were they empty. Errors: BadInput where there is none."""
        needs = self._needs(step)
        wanted = {"CPU": needs["num_cpus"], "GPU": needs["num_gpus"], "memory": needs["memory"], **needs["resources"]}
        wanted = {name: amount for name, amount in wanted.items() if amount}
        nodes = _nodes()
        fit = [node for node in nodes if all(node["Resources"].get(name, 0) >= amount for name, amount in wanted.items())]
        if not fit:
            short = {name: max((n["Resources"].get(name, 0) for n in nodes), default=0) for name in wanted}
            needed = ", ".join(_spell_resource(name, amount) for name, amount in wanted.items())
            offered = ", ".join(_spell_resource(name, amount) for name, amount in short.items())
            raise BadInput(
                f"{step.id.replace(':', ' ')}: needs {needed} on one node; none of the {len(nodes)} has that "
                f"(the most: {offered}); lower resources.threads, or add a node"
            )
        return fit

    def _bench_node(self, step: Step) -> dict[str, Any]:
        """The node of the model's benchmarks: the largest that fewest other models use."""
        model = step.id.split(":")[1]
        nodes = {node["NodeID"]: node for node in self._nodes_for(step)}
        chosen = self.bench_nodes.get(model)
        if chosen not in nodes:
            others = list(self.bench_nodes.values())
            chosen = min(nodes, key=lambda name: (others.count(name), -nodes[name]["Resources"]["CPU"], name))
            self.bench_nodes[model] = chosen
        return nodes[chosen]

    # -- running them --------------------------------------------------------------------------------------------------------

    def start(self, step: Step, arguments: Sequence[str], stage: Path, log: Path, keep_open: Sequence[int]) -> Handle:
        """``keep_open`` is of no use on other machines: a lock file of the step keeps two processes of it apart there."""
        import ray

        from quantize.jobs.ray_task import Order, run_order

        needs = self._needs(step)
        options: dict[str, Any] = {**needs, "max_retries": 0, "name": step.id}
        if step.kind == "bench":
            node = self._bench_node(step)
            options["num_cpus"] = node["Resources"]["CPU"]
            options["scheduling_strategy"] = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                node["NodeID"], soft=False
            )
        else:
            self._nodes_for(step)
        order = Order(
            arguments=tuple(arguments),
            run=str(self.run),
            stage=str(stage),
            log=str(log),
            lock=str(self.run / "steps" / f"{step.slug}.lock"),
            threads=self.threads,
            memory_bytes=self.memory_limit,
            seconds=self.seconds_limit,
            versions={name: version(name) for name in step.packages},
            environment={name: value for name, value in os.environ.items() if name.startswith(FORWARDED)},
        )
        task = ray.remote(run_order).options(**options)
        return RayStep(task.remote(order), stage, log)

    def wait(self, handles: Sequence[Handle], timeout_s: float) -> None:
        import ray

        refs = [handle.ref for handle in handles if isinstance(handle, RayStep)]
        ray.wait(refs, num_returns=1, timeout=min(timeout_s, LONGEST_POLL_S))

    def close(self) -> None:
        import ray

        ray.shutdown()


def _connect(address: str | None) -> None:
    # A cluster of `ray start` asks for a token unless told not to; `auto` brings it along, an address does not.
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or TOKEN.expanduser().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise BadInput("--executor ray: needs Ray; install with: pip install -c constraints.txt 'quantwright[ray]'") from None
    address = address or os.environ.get("RAY_ADDRESS")
    if address and "://" in address:
        raise BadInput(
            f"--address {address}: a Ray client works from outside the cluster, and this program works in the run folder; "
            "start it on a machine of the cluster with host:port or auto"
        )
    if address and address != "auto":
        _must_answer(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if not address:
        options |= {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
    try:
        ray.init(address=address or "local", **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address or "local", error) from None


def _must_answer(address: str) -> None:
    """Ray itself would knock for minutes. Errors: BadInput."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> BadInput:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return BadInput(
        f"--address {address}: no Ray cluster there ({line}); `ray start --head` starts one, host:port is its address"
    )


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _spell_resource(name: str, amount: float) -> str:
    if name == "memory":
        return f"{spell(amount)} of memory"
    names = {"CPU": "cores", "GPU": "GPUs"}
    return f"{amount:g} {names[name]}" if name in names else f"the resource {name}" + ("" if amount else " (0)")
