"""The executor that a person asks for."""

from collections.abc import Mapping
from pathlib import Path

from jobs.costs import StepCost
from jobs.executor import Executor
from jobs.here import Here
from jobs.on_ray import OnRay
from jobs.plan import Plan
from jobs.spec import Job
from quantize.errors import BadInput


def open_executor(
    name: str,
    address: str | None,
    job: Job,
    plan: Plan,
    run: Path,
    costs: Mapping[str, StepCost],
    store: str | None = None,
) -> Executor:
    """``name``: local or ray; the others are of ray only. Errors: BadInput where the cluster or the store
    cannot be reached, or no node can hold the steps."""
    if name == "ray":
        return OnRay(job, plan.steps, run, costs, address, store or job.resources.store)
    for option, given in (("--address", address), ("--store", store)):
        if given:
            raise BadInput(f"{option}: is for steps on a Ray cluster; give --executor ray too, or drop it")
    return Here(job, run, costs)
