"""Steps as tasks of a Ray cluster, each with the cores, memory and GPU that it needs.

Artifacts lie in the run folder, which all nodes share, or go through a store (``jobs.transfer``). A task
starts the very process that would run on this machine (``jobs.ray_task``) and watches it. Ray's own retries
are off: the runner starts a step again whose node is lost, so that its record says so. Benchmarks of one
model run on one node, alone on it, after everything else: only then can their speeds be compared.
"""

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.bucket import Bucket
from jobs.child import Child
from jobs.costs import StepCost
from jobs.executor import Executor, Handle
from jobs.here import Here
from jobs.keys import version
from jobs.machine import device, step_threads
from jobs.ray_cluster import connect
from jobs.ray_step import Carrier, RayStep
from jobs.ray_task import Ended, Order, local_digest, run_order
from jobs.spec import Job
from jobs.steps.step import ModelStep, Step
from quantize.errors import BadInput
from quantize.units import spell_size

#: What a step may need to know of the environment in which the job was started.
FORWARDED = ("HF_", "MODELSCOPE_", "QUANTWRIGHT_")
FORWARDED_STORE = ("AWS_", "FSSPEC_")
TOUCH = 0.001  # of a custom resource that only says where a step may run
LONGEST_POLL_S = 0.2


class OnRay(Executor):
    """``address``: of a cluster that runs (``host:port`` or ``auto``; default: $RAY_ADDRESS, else one is
    started here).

    ``store``: URL by which files go to nodes that do not see the run folder. Errors: BadInput where Ray is
    not installed, the cluster or the store cannot be reached, or no node can hold one of ``steps``.
    """

    def __init__(
        self,
        job: Job,
        steps: Sequence[Step],
        run: Path,
        costs: Mapping[str, StepCost],
        address: str | None,
        store: str | None = None,
    ):
        super().__init__(job, run, costs)
        self.here = Here(job, run, costs)
        self.threads = step_threads(job)
        self.device = device(job.resources.device)
        if ":" in self.device:
            raise BadInput(f"resources.device {self.device}: Ray chooses the GPU of each step; write cuda")
        self.bucket = Bucket(store, "--store") if store else None
        connect(address)
        self.bench_nodes: dict[str, str] = {}  # model -> node
        self.refused: dict[str, dict[str, str]] = {}  # step -> node -> why it would not
        try:
            for step in steps:
                self._nodes_for(step)
        except BaseException:
            self.close()
            raise

    # -- placing steps

    def fits(self, step: Step, running: Sequence[Step], waiting: Sequence[Step]) -> bool:
        """Ray places what is submitted; only benchmarks are held back, until nothing else of the job is left
        to do."""
        limit = self.job.resources.parallel
        if limit and len(running) >= limit:
            return False
        return not step.timed or all(other.timed or other.light for other in (*running, *waiting))

    def _needs(self, step: Step) -> dict[str, Any]:
        """Resources as Ray's options name them."""
        custom = getattr(self.job.resources.nodes, step.kind)
        cost = self.costs.get(step.id)
        return {
            "num_cpus": 1 if step.light else self.threads,
            "num_gpus": 0
            if step.light or self.device == "cpu" or (self.device == "auto" and not self._gpus())
            else 1,
            "memory": cost.memory_bytes if cost else 0,
            "resources": {custom: TOUCH} if custom else {},
        }

    def _gpus(self) -> bool:
        return any(node["Resources"].get("GPU") for node in _nodes())

    def _nodes_for(self, step: Step) -> list[dict[str, Any]]:
        """Living nodes that could hold it were they empty, and have not refused it. Errors: BadInput where
        there is none."""
        needs = self._needs(step)
        wanted = {
            "CPU": needs["num_cpus"],
            "GPU": needs["num_gpus"],
            "memory": needs["memory"],
            **needs["resources"],
        }
        wanted = {name: amount for name, amount in wanted.items() if amount}
        nodes = _nodes()
        fit = [
            node
            for node in nodes
            if all(node["Resources"].get(name, 0) >= amount for name, amount in wanted.items())
        ]
        if not fit:
            short = {name: max((n["Resources"].get(name, 0) for n in nodes), default=0) for name in wanted}
            needed = ", ".join(_spell_resource(name, amount) for name, amount in wanted.items())
            offered = ", ".join(_spell_resource(name, amount) for name, amount in short.items())
            raise BadInput(
                f"{step.title}: needs {needed} on one node; none of the {len(nodes)} nodes "
                f"has that (the largest has {offered}); lower resources.threads, or add a node"
            )
        refused = self.refused.get(step.id, {})
        left = [node for node in fit if node["NodeID"] not in refused]
        if not left:
            raise BadInput(next(reversed(refused.values())))
        return left

    def _bench_node(self, step: ModelStep, fit: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The node of the model's benchmarks: the largest that fewest other models use."""
        model = step.model.name
        nodes = {node["NodeID"]: node for node in fit}
        chosen = self.bench_nodes.get(model)
        if chosen not in nodes:
            others = list(self.bench_nodes.values())
            chosen = min(nodes, key=lambda name: (others.count(name), -nodes[name]["Resources"]["CPU"], name))
            self.bench_nodes[model] = chosen
        return nodes[chosen]

    # -- running them

    def start(
        self, step: Step, arguments: Sequence[str], stage: Path, log: Path, keep_open: Sequence[int]
    ) -> Handle:
        """``keep_open`` does not work on other machines: there a lock file of the step keeps two of its
        processes apart. With a store that is not needed: each works in its own folder."""
        if self.bucket and step.light:  # it runs where the run folder lies
            return self.here.start(step, arguments, stage, log, keep_open)
        order = Order(
            arguments=tuple(arguments),
            threads=self.threads,
            memory_bytes=self.memory_limit,
            seconds=self.seconds_limit,
            versions={name: version(name) for name in step.packages},
            **(self._by_store(step, stage) if self.bucket else self._in_place(step, stage, log)),
        )
        carrier = Carrier(self.bucket, step, self.run, stage) if self.bucket else None
        options = self._placed(step)
        return RayStep(
            lambda order: _submit(order, options), order, log, self.refused.setdefault(step.id, {}), carrier
        )

    def _in_place(self, step: Step, stage: Path, log: Path) -> dict[str, Any]:
        """Of an order: where the run folder is and what lies in it."""
        lock = str(self.run / "steps" / f"{step.slug}.lock")
        paths = {"run": str(self.run), "stage": str(stage), "log": str(log), "lock": lock}
        return {**paths, "environment": _environment(FORWARDED)}

    def _by_store(self, step: Step, stage: Path) -> dict[str, Any]:
        """Of an order: nothing that names the run folder, and what of other folders the node must have
        itself."""
        assert self.bucket is not None
        models = [checkpoint.source for checkpoint in step.sources]
        local = [
            *(path for path in step.files if path.is_absolute()),
            *(Path(m) for m in models if Path(m).is_absolute()),
        ]
        return {
            "run": "",
            "stage": str(stage.relative_to(self.run)),
            "log": "",
            "lock": "",
            "environment": _environment(FORWARDED + FORWARDED_STORE),
            "store": self.bucket.url,
            "begun": f"begun/{uuid.uuid4().hex}",
            "local": {str(path): local_digest(path) for path in local},
        }

    def _placed(self, step: Step) -> dict[str, Any]:
        """Ray's options for it. Errors: BadInput where no node can hold it."""
        options: dict[str, Any] = {**self._needs(step), "max_retries": 0, "name": step.id}
        nodes = self._nodes_for(step)
        node = nodes[0] if self.refused.get(step.id) else None  # some have refused it: not there again
        if step.timed and isinstance(step, ModelStep):
            node = self._bench_node(step, nodes)
            options["num_cpus"] = node["Resources"]["CPU"]
        if node:
            import ray

            options["scheduling_strategy"] = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                node["NodeID"], soft=False
            )
        return options

    def wait(self, handles: Sequence[Handle], timeout_s: float) -> None:
        import ray

        children = [handle for handle in handles if isinstance(handle, Child)]
        refs = [handle.ref for handle in handles if isinstance(handle, RayStep) and handle.ref is not None]
        if children:
            self.here.wait(children, 0.05 if refs else timeout_s)
        elif refs:
            ray.wait(refs, num_returns=1, timeout=min(timeout_s, LONGEST_POLL_S))
        else:  # files are on their way
            time.sleep(0.05)

    def close(self) -> None:
        import ray

        ray.shutdown()


def _submit(order: Order, options: Mapping[str, Any]) -> Any:
    import ray

    return ray.remote(_on_node).options(**options).remote(order)


def _on_node(order: Order) -> Ended:
    import ray

    return replace(run_order(order), node_id=ray.get_runtime_context().get_node_id())


def _environment(prefixes: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes)}


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _spell_resource(name: str, amount: float) -> str:
    if name == "memory":
        return f"{spell_size(amount)} of memory"
    names = {"CPU": "cores", "GPU": "GPUs"}
    return (
        f"{amount:g} {names[name]}" if name in names else f"the resource {name}" + ("" if amount else " (0)")
    )
