"""What runs on a node of the cluster: a step's process, kept to its limits. Nothing here imports Ray."""

import contextlib
import errno
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantize.errors import StepFailed
from quantize.jobs.child import Child
from quantize.jobs.keys import version

#: How long to wait for an earlier process of the same step, on a node that was lost, to let go: a file server may hold the
#: lock of a dead machine for a lease of 90 s.
PATIENCE_S = 150.0
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Order:
    """A step to run: paths as the driver sees them, and ``versions`` of the packages on which the step's key relies."""

    arguments: tuple[str, ...]
    run: str
    stage: str
    log: str
    lock: str
    threads: int
    memory_bytes: int | None
    seconds: float | None
    versions: dict[str, str]
    environment: dict[str, str]


@dataclass(frozen=True)
class Ended:
    code: int
    killed_for: str
    wall_s: float
    peak_rss_bytes: int
    node: str


def run_order(order: Order) -> Ended:
    """Run the step's process to its end. What keeps it from starting is a reason (``killed_for``) too, not an exception."""
    began, node = time.monotonic(), platform.node()
    problem = _problem(order)
    if problem:
        return Ended(-9, f"node {node}: {problem}", 0.0, 0, node)
    stage = Path(order.stage)
    try:
        with _only_one(Path(order.lock)) as lock:
            (stage / "node").write_text(node, encoding="utf-8")
            child = Child(
                order.arguments,
                Path(order.run),
                Path(order.log),
                stage / "stdout",
                [lock],
                order.threads,
                order.environment,
            )
            while (code := child.poll()) is None:
                Child.wait([child], 0.2)
                child.enforce(order.memory_bytes, order.seconds)
            return Ended(code, child.killed_for, child.wall_s, child.peak_rss_bytes, node)
    except (StepFailed, OSError) as error:
        return Ended(-9, f"node {node}: {error}", time.monotonic() - began, 0, node)


def _problem(order: Order) -> str:
    if not Path(order.stage).is_dir():
        return f"does not see {order.run}; the run folder must lie on a file system that all nodes share"
    for name, wanted in order.versions.items():
        if version(name) != wanted:
            return f"has {name} {version(name)}, and the driver {wanted}; install the same versions everywhere"
    return ""


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[int]:
    """Holds the step's lock, whose descriptor its process inherits. Errors: StepFailed where another keeps it."""
    with open(lock, "a", encoding="utf-8") as file:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno in NO_LOCKS:  # outputs are still committed by rename
                    break
                if time.monotonic() > deadline:
                    raise StepFailed(f"an earlier process of this step still runs somewhere ({lock} is locked)") from None
                time.sleep(0.2)
        os.set_inheritable(file.fileno(), True)
        yield file.fileno()
