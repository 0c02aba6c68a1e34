"""A step that was given to Ray, as the runner sees it: waiting for a node, running there, its files on their
way."""

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.bucket import Bucket, BucketError
from jobs.ray_task import Ended, Order
from jobs.steps.step import Step
from jobs.transfer import pull, push, settle
from quantize.errors import StepFailed, first_line

BEGUN_POLL_S = 1.0


class Carrier:
    """Brings a step's files to the store and back. ``run``: the run folder; ``stage``: the step's own folder
    in it."""

    def __init__(self, bucket: Bucket, step: Step, run: Path, stage: Path):
        self.bucket, self.step, self.run, self.arrivals = bucket, step, run, stage / "arrived"

    def send(self) -> dict[str, str]:
        """What the step reads of the run folder: name -> sha256, all of it in the store now."""
        inputs = self.step.carried(self.run)
        push(self.bucket, self.run, inputs)
        return inputs

    def bring(self, made: dict[str, str], wanted: Callable[[], bool]) -> None:
        pull(self.bucket, made, self.arrivals, wanted)

    def settle(self, made: dict[str, str]) -> None:
        settle(made, self.arrivals, self.run)


class RayStep:
    """``submit`` hands an order to Ray and returns the reference to its end. ``refused``: node id -> why it
    refused the step. ``carrier``: where nodes do not see the run folder."""

    def __init__(
        self,
        submit: Callable[[Order], Any],
        order: Order,
        log: Path,
        refused: dict[str, str],
        carrier: Carrier | None,
    ):
        self._submit, self._order, self._refused, self._carrier = submit, order, refused, carrier
        self.log = log
        self.pid = 0  # of no use on another machine
        self.killed_for = self.lost = self.node = ""
        self.peak_rss_bytes = 0
        self.ref: Any = None  # while Ray has it
        self._code: int | None = None
        self._wall_s: float | None = None
        self._began = 0.0
        self._course = self._go()
        self.poll()

    @property
    def started(self) -> bool:
        """Until a node has taken it, it waits in Ray's queue and no time counts."""
        if not self._began and not self._carrier and (Path(self._order.stage) / "node").is_file():
            self._began = time.monotonic()
        return bool(self._began)

    @property
    def wall_s(self) -> float:
        if self._wall_s is not None:
            return self._wall_s
        return time.monotonic() - self._began if self.started else 0.0

    def poll(self) -> int | None:
        """Errors: StepFailed where the cluster itself is gone, OSError where the run folder cannot be
        written."""
        if self._code is None:
            try:
                next(self._course)
            except StopIteration as end:
                self._code = end.value
        return self._code

    def kill(self, why: str) -> None:
        import ray

        if self.killed_for:
            return
        self.killed_for = why
        if self.ref is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.cancel(self.ref, force=True)

    def _go(self) -> Generator[None, None, int]:
        """The step from beginning to end, as far as it gets at each ``poll``; returns its exit code."""
        order, carrier = self._order, self._carrier
        try:
            if carrier:
                order = replace(order, inputs=(yield from self._aside(carrier.send)))
            self.ref = self._submit(order)
            if carrier:
                threading.Thread(
                    target=self._await_begin, args=(carrier.bucket, order.begun), daemon=True
                ).start()
            ended = yield from self._listen()
            self.ref = None
            if ended is None:
                return -9
            self.node, self.peak_rss_bytes, self._wall_s = ended.node, ended.peak_rss_bytes, ended.wall_s
            self.killed_for, self.lost = self.killed_for or ended.killed_for, ended.lost or ended.refused
            if ended.refused:
                self._refused[ended.node_id] = ended.refused
            if ended.log:
                self.log.parent.mkdir(exist_ok=True)
                with open(self.log, "ab") as file:
                    file.write(ended.log)
            if ended.code == 0 and carrier:
                yield from self._aside(lambda: carrier.bring(ended.made, lambda: not self.killed_for))
                carrier.settle(ended.made)
            return ended.code
        except BucketError as error:
            self.lost = str(error)
        except _Killed:
            pass
        return -9

    def _aside(self, errand: Callable[[], Any]) -> Generator[None, None, Any]:
        """Its result, from a separate thread: it may be gigabytes, and other steps end in the meantime."""
        results: list[Any] = []
        problems: list[Exception] = []

        def work() -> None:
            try:
                results.append(errand())
            except Exception as error:
                problems.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while thread.is_alive():
            if self.killed_for:
                raise _Killed
            yield
        for problem in problems:
            raise problem
        return results[0]

    def _await_begin(self, bucket: Bucket, name: str) -> None:
        """In a thread: until a node has said that it has the step."""
        while self.ref is not None and not self._began:
            with contextlib.suppress(BucketError):  # the node has the same trouble, and the step says so
                node = bucket.read(name)
                if node is not None:
                    self.node, self._began = node.decode(), time.monotonic()
                    bucket.delete(name)
            time.sleep(BEGUN_POLL_S)

    def _listen(self) -> Generator[None, None, Ended | None]:
        """Until the task has ended; None where it was cut off, and ``lost`` or ``killed_for`` says why."""
        import ray

        gone = (
            ray.exceptions.NodeDiedError,
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.TaskUnschedulableError,
        )
        while not ray.wait([self.ref], timeout=0)[0]:
            yield
        try:
            ended: Ended = ray.get(self.ref)
            return ended
        except ray.exceptions.OutOfMemoryError:
            self.killed_for = self.killed_for or "Ray stopped it: its node was running out of memory"
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except ray.exceptions.TaskCancelledError:
            pass
        except gone:
            if not self._carrier:
                with contextlib.suppress(OSError):
                    self.node = (Path(self._order.stage) / "node").read_text(encoding="utf-8").strip()
            self.lost = (
                ""
                if self.killed_for
                else f"its node {self.node} is gone"
                if self.node
                else "its node is gone"
            )
        except ray.exceptions.RayError as error:
            raise StepFailed(
                f"Ray: {first_line(error)}; run the same command again to do only what is missing"
            ) from None
        return None


class _Killed(Exception):
    """The step was killed while its files were on their way."""
