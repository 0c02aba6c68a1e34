"""What a plan will cost, before anything is spent: output sizes, disk at the worst moment, memory, time.
Reads headers only."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from jobs.machine import step_threads
from jobs.plan import Plan
from jobs.rates import Estimate, Sample, estimate_seconds, read_samples
from jobs.sizes import output_bytes
from jobs.spec import Job
from jobs.steps.step import Step
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.reader import IN_FILES
from quantize.errors import BadInput
from quantize.units import GIB, parse_size, spell_size

#: Of a converting process before any weight, engines loaded. What has been measured here comes before it
#: (``_known_peak``).
BASE_BYTES = {
    "gguf": 90 << 20,
    "dense": 90 << 20,
    "gptq": 950 << 20,
    "awq": 1050 << 20,
    "quanto": 560 << 20,
    "bnb": 560 << 20,
}
BASE_DEFAULT = 650 << 20
VERIFY_BASE_BYTES = 540 << 20  # comparing logits loads torch and transformers
#: Of a process that opens an artifact, and of one that compares it with a reference.
BENCH_BASE_BYTES = {"gguf": 90 << 20, "gptq": 700 << 20, "awq": 700 << 20}
BENCH_BASE_DEFAULT = 500 << 20
TASKS_BYTES = 120 << 20  # lm-eval and datasets
FLOORS_BYTES = 200 << 20  # a second runtime
EVAL_BASE_BYTES = {"gptq": 760 << 20, "awq": 760 << 20}
#: Copies of the weights that are held at once: in float32 by engines that compute, as stored (mapped files
#: counted) by those that only round. GGUF streams; what verification maps of source and artifact counts as
#: held, though the system may take it back.
COPIES = {"gptq": 1.6, "awq": 1.8}
STORED_COPIES = {"gguf": 0.0, "dense": 0.0, "quanto": 2.8, "bnb": 1.8}
#: methods whose library reads weights from files: those of a GGUF, or with an adapter, are written for it
READS_FILES = ("gptq", "awq", "quanto", "bnb")
VERIFY_STORED_COPIES = 0.7
REPORT_BYTES = 200 << 20
TEXT_TOKENS = 70_000  # where no limit is given: the held-out text of the demo has about so many
CACHE_LIMIT = 4 * GIB


@dataclass(frozen=True)
class StepCost:
    """``size_bytes``: of the output; ``cache_bytes``: of what stays in RUN/cache; ``scratch_bytes``: on disk
    while it runs."""

    id: str
    kind: str
    size_bytes: int | None
    cache_bytes: int
    memory_bytes: int
    time: Estimate
    work: float
    rate_kind: str
    scratch_bytes: int = 0


@dataclass
class PlanCost:
    steps: dict[str, StepCost] = field(default_factory=dict)
    disk_bytes: int = 0
    free_bytes: int = 0
    memory_bytes: int = 0
    available_bytes: int = 0

    @property
    def low_s(self) -> float:
        return sum(cost.time.low_s for cost in self.steps.values())

    @property
    def high_s(self) -> float:
        return sum(cost.time.high_s for cost in self.steps.values())


def estimate_plan(job: Job, plan: Plan, run: Path, samples: list[Sample] | None = None) -> PlanCost:
    """``run``: the run folder, which need not exist."""
    samples = read_samples() if samples is None else samples
    sources = {model.name: model.checkpoint for model in plan.models if model.checkpoint}
    limit = parse_size(job.resources.memory) if job.resources.memory else None
    cost = PlanCost(available_bytes=limit or int(psutil.virtual_memory().total))
    sizes = {
        step.id: output_bytes(sources[step.id.split(":")[1]], plan.recipes[step.id])
        for step in plan.steps
        if step.kind == "convert"
    }
    for step in plan.steps:
        cost.steps[step.id] = _step_cost(job, plan, step, sources, samples, sizes, cost.available_bytes)
    # An output is staged beside its place and renamed, so it is never on disk twice; what else a step writes
    # goes when it ends.
    together = sorted((c.scratch_bytes for c in cost.steps.values()), reverse=True)[
        : job.resources.parallel or 1
    ]
    cost.disk_bytes = sum((c.size_bytes or 0) + c.cache_bytes for c in cost.steps.values()) + sum(together)
    existing = next(path for path in [run.absolute(), *run.absolute().parents] if path.exists())
    cost.free_bytes = shutil.disk_usage(existing).free + _already(run, plan)
    cost.memory_bytes = max((c.memory_bytes for c in cost.steps.values()), default=0)
    return cost


def refuse_what_cannot_fit(cost: PlanCost, run: Path, memory: bool = True) -> None:
    """``memory``: whether steps run on this machine. Errors: BadInput, before any work, where disk or memory
    are too small."""
    if cost.disk_bytes > cost.free_bytes:
        raise BadInput(
            f"{run}: the job needs {spell_size(cost.disk_bytes)} of disk and "
            f"{spell_size(cost.free_bytes)} are free; "
            "free some, choose another -o, or take recipes out"
        )
    for step in cost.steps.values() if memory else ():
        if step.memory_bytes > cost.available_bytes:
            raise BadInput(
                f"{step.id.replace(':', ' ')} needs about {spell_size(step.memory_bytes)} of memory, and "
                f"{spell_size(cost.available_bytes)} are allowed or installed; raise resources.memory, or "
                "take this recipe out"
            )


def _already(run: Path, plan: Plan) -> int:
    """Bytes that an earlier run of the same job has put there: they are part of what the job needs."""
    folders = [run / step.output for step in plan.steps if step.kind == "convert"] + [run / "cache"]
    return sum(
        path.stat().st_size
        for folder in folders
        if folder.is_dir()
        for path in folder.rglob("*")
        if path.is_file()
    )


def _step_cost(
    job: Job,
    plan: Plan,
    step: Step,
    sources: Mapping[str, Checkpoint],
    samples: list[Sample],
    sizes: Mapping[str, int | None],
    available: int,
) -> StepCost:
    threads = step_threads(job)
    if step.kind == "report":
        time = estimate_seconds("report", 1.0, threads, samples)
        return StepCost(step.id, step.kind, None, 0, REPORT_BYTES, time, 1.0, "report")
    if step.kind == "publish":
        copied = 0 if job.publish and job.publish.upload else sum(sizes[made.id] or 0 for made in step.after)
        time = estimate_seconds("publish", 1.0, threads, samples)
        return StepCost(step.id, step.kind, copied or None, 0, REPORT_BYTES, time, 1.0, "publish")
    checkpoint = sources[step.id.split(":")[1]]
    convert_id = step.id.replace(f"{step.kind}:", "convert:", 1)
    recipe = plan.recipes.get(convert_id)
    method = recipe.method if recipe else "dense"
    weights = checkpoint.parameters
    if step.kind == "convert":
        assert recipe is not None
        # What conversions without verification took says nothing of those with it.
        kind, work = f"convert:{method}" + ("" if job.verify == "full" else f":{job.verify}"), weights / 1e6
        memory = _known_peak(kind, work, samples) or conversion_memory(checkpoint, method, job.verify)
        time = estimate_seconds(kind, work, threads, samples)
        # Verification spills the weights it has read back as float32; the engines of GPTQ and AWQ save before
        # we rewrite.
        spilled = 4 * weights if job.verify == "full" else 0
        saved = sizes[step.id] or 0 if method in ("gptq", "awq") else 0
        lazy = "--adapter" in step.arguments or checkpoint.reader is not IN_FILES
        stored = sum(info.size_bytes for info in checkpoint.tensors.values())
        written = stored if lazy and method in READS_FILES else 0
        return StepCost(
            step.id, step.kind, sizes[step.id], 0, memory, time, work, kind, written + max(spilled, saved)
        )
    # llama.cpp maps the file; transformers holds float32 on a CPU, whatever was stored.
    held = (sizes.get(convert_id) if method == "gguf" else None) or 4 * weights
    if step.kind == "bench":
        kind, work = f"bench:{method}", weights / 1e6
        served = _known_peak(kind, work, samples) or BENCH_BASE_BYTES.get(method, BENCH_BASE_DEFAULT) + held
        return StepCost(
            step.id, step.kind, None, 0, served, estimate_seconds(kind, work, threads, samples), work, kind
        )
    tokens = (job.evaluate.tokens if job.evaluate else None) or TEXT_TOKENS
    vocabulary = int(checkpoint.config.get("vocab_size") or 32_000)
    cache = min(tokens // 2 * (2 * vocabulary + 20), CACHE_LIMIT) if recipe is None else 0
    kind, work = f"eval:{method}", weights / 1e6 * tokens / 1e3
    logits = 512 * vocabulary * 4 * 3
    built_in = EVAL_BASE_BYTES.get(method, BASE_DEFAULT) + held + logits
    if job.evaluate and job.evaluate.tasks:
        built_in += TASKS_BYTES
    scratch = 0
    if job.evaluate and job.evaluate.floors and recipe is None:
        scratch = 4 * weights
        floors = FLOORS_BYTES + 6 * weights  # beside the reference, as an F32 GGUF and in bfloat16
        built_in += (
            floors if built_in + floors <= available else 0
        )  # where they do not fit, they are left out
    memory = _known_peak(kind, work, samples) or built_in
    return StepCost(
        step.id,
        step.kind,
        None,
        cache,
        memory,
        estimate_seconds(kind, work, threads, samples),
        work,
        kind,
        scratch,
    )


def _known_peak(kind: str, work: float, samples: list[Sample]) -> int | None:
    """The most that earlier steps of this kind and size have held on this machine, and a little more."""
    near = [s.peak_rss_bytes for s in samples if s.kind == kind and 0.8 < work / max(s.work, 1e-3) < 1.25]
    return int(1.05 * max(near)) if near else None


def conversion_memory(checkpoint: Checkpoint, method: str, verify: str) -> int:
    """Peak of the converting process, verification included, which goes layer by layer."""
    largest = max((info.parameters for info in checkpoint.tensors.values()), default=0)
    layers = int(checkpoint.config.get("num_hidden_layers") or 1)
    layer = checkpoint.parameters // max(layers, 1)
    full = verify == "full"
    stored = sum(info.size_bytes for info in checkpoint.tensors.values())
    copies = STORED_COPIES.get(method)
    held = 4 * COPIES.get(method, 1.5) * checkpoint.parameters if copies is None else copies * stored
    base = max(BASE_BYTES.get(method, BASE_DEFAULT), VERIFY_BASE_BYTES if full else 0)
    return int(base + max(held, VERIFY_STORED_COPIES * stored if full else 0) + 12 * max(largest, layer))
