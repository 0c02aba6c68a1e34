"""What runs on a node of the cluster: a step's process, kept to its limits. Nothing here imports Ray.

It runs in the run folder, where all nodes see that; with ``--store`` in a folder of the node's own, into
which its inputs come from the store, and what it has made goes back there.
"""

import contextlib
import errno
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from jobs.bucket import Bucket, BucketError
from jobs.child import Child
from jobs.keys import version
from jobs.transfer import pull, push
from jobs.work_folder import LOG, new_files, work_folder
from quantize.errors import QuantwrightError, StepFailed
from quantize.file_hashes import user_hashes
from quantize.sources.opening import open_checkpoint

#: How long to wait for an earlier process of the same step, on a node that was lost, to let go: a file server
#: may hold the lock of a dead machine for a lease of 90 s.
PATIENCE_S = 150.0
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
LOG_BYTES = 16 << 20


@dataclass(frozen=True)
class Order:
    """A step to run: paths as the driver sees them, and ``versions`` of the packages on which the step's key
    relies.

    With a ``store``, ``stage`` is relative to the work folder, ``run``, ``log`` and ``lock`` are empty,
    ``inputs`` are files to fetch (name in the work folder -> sha256), ``local`` is what the node must have
    itself: path of a file -> sha256, path of a model -> digest; and ``begun`` the object in which the node
    says its name when it has begun.
    """

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
    store: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    local: dict[str, str] = field(default_factory=dict)
    begun: str = ""


@dataclass(frozen=True)
class Ended:
    """``refused``: this node cannot do it, another may. ``lost``: why it may be tried again anywhere.
    ``made``: files in the store, name in the work folder -> sha256. ``log``: the end of it, where the driver
    cannot read it."""

    code: int
    node: str  # name of the machine
    killed_for: str = ""
    wall_s: float = 0.0
    peak_rss_bytes: int = 0
    refused: str = ""
    lost: str = ""
    made: dict[str, str] = field(default_factory=dict)
    log: bytes = b""
    node_id: str = ""  # Ray's


def run_order(order: Order) -> Ended:
    """Run the step's process to its end. What keeps it from starting is a reason too, not an exception."""
    began, node = time.monotonic(), platform.node()
    if order.store:
        os.environ.update(order.environment)  # the store's client reads it here, in the worker
    try:
        problem = _problem(order)
        if problem:
            return Ended(-9, node, refused=f"node {node}: {problem}")
        return _in_work_folder(order, node) if order.store else _in_run_folder(order, node)
    except (StepFailed, OSError) as error:
        return Ended(-9, node, f"node {node}: {error}", time.monotonic() - began)


def _problem(order: Order) -> str:
    if not order.store and not Path(order.stage).is_dir():
        return (
            f"does not see {order.run}; the run folder must lie on "
            "a file system that all nodes share, or use --store"
        )
    for name, wanted in order.versions.items():
        if version(name) != wanted:
            return (
                f"has {name} {version(name)}, but the driver has "
                f"{wanted}; install the same versions everywhere"
            )
    if order.local:
        for name, wanted in order.local.items():
            try:
                found = local_digest(Path(name))
            except (QuantwrightError, OSError) as error:
                return f"has no usable {name} ({error}); copy the driver's there"
            if found != wanted:
                return f"has another {name} than the driver; copy the driver's there"
    return ""


def local_digest(path: Path) -> str:
    """Of a file, or of a checkpoint's folder. Errors: OSError, QuantwrightError where it is not there or not
    usable."""
    if path.is_dir():
        # headers only: nothing of it is executed
        return open_checkpoint(path, trust_remote_code=True).digest_now()
    return user_hashes().sha256(path)


def _in_run_folder(order: Order, node: str) -> Ended:
    with _only_one(Path(order.lock)) as lock:
        stage = Path(order.stage)
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
        return _watched(child, order, node)


def _watched(child: Child, order: Order, node: str) -> Ended:
    while (code := child.poll()) is None:
        Child.wait([child], 0.2)
        child.enforce(order.memory_bytes, order.seconds)
    return Ended(code, node, child.killed_for, child.wall_s, child.peak_rss_bytes)


def _in_work_folder(order: Order, node: str) -> Ended:
    with work_folder(order.stage) as work:
        try:
            bucket = Bucket(order.store, "--store")
            bucket.write(order.begun, node.encode())
            pull(bucket, order.inputs, work)
        except QuantwrightError as error:
            return Ended(-9, node, lost=f"node {node}: {error}")
        child = Child(
            order.arguments,
            work,
            work / LOG,
            work / order.stage / "stdout",
            [],
            order.threads,
            order.environment,
        )
        ended = replace(_watched(child, order, node), log=_end_of(work / LOG))
        if ended.code != 0:
            return ended
        made = new_files(work, order.inputs)
        try:
            push(bucket, work, made)
        except BucketError as error:
            return replace(ended, code=-9, lost=f"node {node}: {error}")
        return replace(ended, made=made)


def _end_of(log: Path) -> bytes:
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_BYTES))
        return file.read()


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[int]:
    """Holds the step's lock, whose descriptor its process inherits. Errors: StepFailed where another keeps
    it."""
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
                    raise StepFailed(
                        f"an earlier process of this step is still running ({lock} is locked)"
                    ) from None
                time.sleep(0.2)
        os.set_inheritable(file.fileno(), True)
        yield file.fileno()
