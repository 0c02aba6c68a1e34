"""What a step is told about the machine: threads, device, dtype, memory."""

import sys
from pathlib import Path
from typing import Any

from jobs.models import OpenModel
from jobs.spec import Job
from quantize.recipe import RunOptions


def run_inputs(job: Job) -> dict[str, Any]:
    """Options that can change numbers."""
    resources = job.resources
    return {"device": device(resources.device), "dtype": resources.dtype, "threads": step_threads(job)}


def step_threads(job: Job) -> int:
    return job.resources.threads or max(1, RunOptions().resolved_threads // (job.resources.parallel or 1))


def device(asked: str) -> str:
    """``auto`` is the CPU where the system has no GPU; said outright, it spares steps that need no torch the
    import of it."""
    has_gpu = any(Path(name).exists() for name in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))
    return "cpu" if asked == "auto" and not has_gpu and sys.platform.startswith("linux") else asked


def run_arguments(job: Job, model: OpenModel) -> list[str]:
    resources = job.resources
    arguments = [
        "--threads",
        str(step_threads(job)),
        "--device",
        device(resources.device),
        "--dtype",
        resources.dtype,
    ]
    if resources.memory:
        arguments += ["--memory", resources.memory]
    return [*arguments, "--trust-remote-code"] if model.spec.trust_remote_code else arguments
