"""Runs a plan: every step in its own process, skipping those already done; a failure costs only its row.

kill -9 this process, a step or the machine at any moment and run the same command: what is committed stays,
the rest is done.
"""

import platform
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jobs.cache_bucket import open_cache
from jobs.child import failure_reason
from jobs.claims import Claims
from jobs.costs import StepCost
from jobs.executor import Executor, Handle
from jobs.folder import register
from jobs.here import Here
from jobs.keys import step_key
from jobs.machine import step_threads
from jobs.outputs import Outputs
from jobs.plan import Plan
from jobs.rates import Sample, add_sample
from jobs.records import Record, Records, RunLock
from jobs.rows import write_row
from jobs.spec import Job
from jobs.steps.step import Step
from jobs.summary import Summary
from quantize.disk_errors import disk_error
from quantize.errors import BadInput, QuantwrightError
from quantize.units import spell_size, spell_time

#: What a step says when a second attempt may succeed: the network, and nothing else.
NETWORK = (
    "cannot be reached",
    "ConnectionError",
    "Connection reset",
    "timed out",
    "Temporary failure in name resolution",
)


@dataclass
class _Running:
    step: Step
    record: Record
    child: Handle
    stage: Path
    beside: list[Step]  # whose outputs its process makes from the same reading


class Runner:
    """``path`` is the job file, ``run`` the run folder. ``say`` gets what stays to be read, ``show`` a line
    that the next one replaces. ``costs``: step id -> what the plan says it takes. ``executor``: where steps
    run (default: here). ``cache``: a folder or URL shared with other runs."""

    def __init__(
        self,
        path: Path,
        job: Job,
        plan: Plan,
        run: Path,
        say: Callable[[str], None],
        show: Callable[[str], None] = lambda text: None,
        costs: Mapping[str, StepCost] | None = None,
        executor: Executor | None = None,
        cache: str | None = None,
    ):
        self.path, self.job, self.plan, self.run_folder, self.say = path, job, plan, run.absolute(), say
        self.show = show
        self.costs = costs or {}
        self.executor = executor or Here(job, self.run_folder, self.costs)
        self.records = Records(self.run_folder)
        self.summary = Summary()
        self.digests: dict[str, str] = {}  # of steps that are done
        self.ended: set[str] = set()
        self.running: list[_Running] = []
        self.interrupts = 0
        self.claims = Claims(open_cache(cache, say) if cache else None, self.run_folder)
        self.waits: set[str] = set()  # for another run that is making the same
        self.shared: dict[str, str] = {}  # steps that another's process was to make -> title of that

    def run(self) -> Summary:
        """Errors: BadInput where another runner works in the run folder, or it cannot be written; StepFailed
        where it cannot be written any more."""
        with RunLock(self.run_folder) as lock:
            self.lock = lock
            self.outputs = Outputs(self.run_folder)
            self.outputs.clear_leftovers(self.plan.steps)
            register(self.run_folder, self.path, self.plan)
            for row in self.plan.rows:
                write_row(self.run_folder, row)
                (self.summary.failed if row.status == "failed" else self.summary.unsupported).append(row.name)
                self.say(f"{row.status}: {row.reason}")
            heard = [signal.SIGINT, signal.SIGTERM]
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
                heard.append(signal.SIGHUP)
            handlers = {number: signal.signal(number, self._interrupt) for number in heard}
            try:
                self._loop()
            except OSError as error:
                raise disk_error(error, self.run_folder) from error
            finally:
                self._stop_all("the runner stopped")
                self.outputs.clear_leftovers(self.plan.steps)  # of steps that were stopped
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        return self.summary

    def _interrupt(self, number: int, frame: Any) -> None:
        """Only takes note: the loop, which is back in 0.2 s, stops the steps."""
        self.interrupts += 1 if number == signal.SIGINT else 2
        self.summary.interrupted = self.summary.interrupted or number
        if self.interrupts == 1 and self.running:
            self.say("interrupted: finishing the running step; press Ctrl-C again to stop it")

    def _stop_all(self, why: str, queued: bool = False) -> None:
        """``queued``: only those that wait for a node."""
        for running in self.running:
            if not (queued and running.child.started):
                running.child.kill(why)

    # -- the loop

    def _loop(self) -> None:
        pending = list(self.plan.steps)
        while pending or self.running:
            if self.summary.interrupted:
                pending = []
            if self.interrupts:
                self._stop_all("interrupted", queued=self.interrupts == 1)
            self._start_ready(pending)
            if not self.running:
                if pending and self.waits:
                    time.sleep(0.2)
                elif (
                    pending
                    and not self.summary.interrupted
                    and not any(self._is_ready(step) or self._is_blocked(step) for step in pending)
                ):
                    raise AssertionError(f"steps wait for one another: {[step.id for step in pending]}")
                continue
            self.executor.wait([running.child for running in self.running], 0.2)
            self.show("; ".join(self._state_of(running) for running in self.running))
            for running in list(self.running):
                code = running.child.poll()
                if code is not None:
                    self.running.remove(running)
                    self._finish(running, code)

    def _state_of(self, running: _Running) -> str:
        its = running.child
        expected = self.costs.get(running.step.id)
        known = (
            f" of {spell_time(expected.time.low_s)} to {spell_time(expected.time.high_s)}" if expected else ""
        )
        return f"{running.step.title}: {spell_time(its.wall_s)}{known}, peak {spell_size(its.peak_rss_bytes)}"

    def _start_ready(self, pending: list[Step]) -> None:
        for step in list(pending):
            if self.summary.interrupted:
                return
            if self._is_blocked(step):
                pending.remove(step)
                self._end(step)
                self.summary.blocked.append(step.id)
                self._announce(step, f"not possible: {self._blocker(step)} failed")
            elif self._is_ready(step) and self._fits(step, pending) and self._begin(step):
                pending.remove(step)

    def _is_ready(self, step: Step) -> bool:
        return all(made.id in self.digests for made in step.after) and all(
            other.id in self.ended for other in step.prefers
        )

    def _fits(self, step: Step, pending: list[Step]) -> bool:
        return self.executor.fits(step, [other.step for other in self.running], pending)

    def _is_blocked(self, step: Step) -> bool:
        return any(made.id in self.ended and made.id not in self.digests for made in step.after)

    def _blocker(self, step: Step) -> str:
        return next(made.id for made in step.after if made.id in self.ended and made.id not in self.digests)

    # -- one step

    def _begin(self, step: Step) -> bool:
        """False where another run is making the same, for which it waits."""
        try:
            key = step_key(step, self.run_folder, self.digests)
        except OSError as error:
            self._give_up(step, Record(step.id, ""), f"{error.filename}: {error.strerror}")
            return True
        record = self.records.read(step.slug)
        digest = self.outputs.committed(step, key, record)
        if digest is not None:
            if record is None or record.status != "done":
                adopted = record or Record(step.id, key)
                adopted.status, adopted.digest, adopted.output = "done", digest, str(step.output)
                adopted.size_bytes = step.size_bytes(self.run_folder)
                self.records.write(step.slug, adopted)
            self._clear(self.outputs.stage_folder(step))  # of a runner that died before it could
            self._mark_done(step, digest)
            shared = self.shared.get(step.id)
            (self.summary.done if shared else self.summary.skipped).append(step.id)
            self._announce(step, f"done with {shared}" if shared else "already done")
            return True
        fresh = Record(step.id, key, output=str(step.output))
        if not self.claims.claim(step, key):
            if step.id not in self.waits:
                self._announce(step, "another run is making it; waiting")
            self.waits.add(step.id)
            return False
        self.waits.discard(step.id)
        if not self._reuse(step, fresh):
            self._start(step, fresh)
        return True

    def _reuse(self, step: Step, record: Record) -> bool:
        """Whether the step is over, since the shared cache had its output (or that cannot be written
        here)."""
        try:
            if not self.claims.fetch(step):
                return False
            digest = step.adopt(self.run_folder)
        except QuantwrightError as error:
            self._give_up(step, record, str(error))
            return True
        assert digest is not None, step.id
        record.status, record.digest, record.size_bytes = "done", digest, step.size_bytes(self.run_folder)
        self.records.write(step.slug, record)
        self._mark_done(step, digest)
        self.summary.reused.append(step.id)
        self._announce(step, "taken from the cache")
        return True

    def _start(self, step: Step, record: Record) -> None:
        record.status, record.previous = "running", self.outputs.identity(step)
        record.attempts += 1
        record.started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record.log = f"logs/{step.slug}.log"
        log = self.run_folder / record.log
        if record.attempts == 1:
            log.unlink(missing_ok=True)
        stage = self.outputs.stage(step)
        self.records.write(step.slug, record)
        arguments = step.command(self.run_folder, stage)
        beside = self._beside(step, record)
        if beside:
            arguments += step.beside(self.run_folder, beside)
        try:
            child = self.executor.start(step, arguments, stage, log, [self.lock.fd, *self.claims.held(step)])
        except BadInput as error:  # the node that could have held it is gone
            self._give_up(step, record, str(error), stage)
            return
        record.pid = child.pid
        cost = self.costs.get(step.id)
        if cost is not None:
            record.planned = {
                "size_bytes": cost.size_bytes,
                "memory_bytes": cost.memory_bytes,
                "low_s": round(cost.time.low_s, 1),
                "high_s": round(cost.time.high_s, 1),
            }
        self.running.append(_Running(step, record, child, stage, beside))
        self._announce(step, "..." if not beside else f"... and {len(beside)} more from the same reading")

    def _beside(self, step: Step, record: Record) -> list[Step]:
        """The steps that its process can make, too; each has a record, by which the runner, or the next after
        a crash, knows the output for what it is. Only in a first attempt: what fails is tried by itself."""
        alone = step.id in self.shared or record.attempts > 1 or self.claims.cache is not None
        if alone or step.reading is None or not self.executor.shares_readings:
            return []
        found = []
        for other in self.plan.steps:
            tried = other is step or other.id in self.ended or other.id in self.shared
            if tried or other.reading != step.reading or not self._is_ready(other):
                continue
            try:
                key = step_key(other, self.run_folder, self.digests)
            except OSError:
                continue
            if self.outputs.committed(other, key, self.records.read(other.slug)) is None:
                its = Record(other.id, key, output=str(other.output), started_at=record.started_at)
                its.previous, its.log = self.outputs.identity(other), record.log
                self.records.write(other.slug, its)
                self.shared[other.id] = step.title
                found.append(other)
        return found

    def _finish(self, running: _Running, code: int) -> None:
        step, record, child = running.step, running.record, running.child
        record.wall_s, record.peak_rss_bytes, record.exit_code = (
            round(child.wall_s, 3),
            child.peak_rss_bytes,
            code,
        )
        record.node = child.node
        if code == 0:
            digest = step.commit(self.run_folder, running.stage)
            if digest is None:
                self._give_up(step, record, f"ended without an error but left no {step.output}")
                return
            record.status, record.digest = "done", digest
            record.size_bytes = step.size_bytes(self.run_folder)
            record.detail = step.detail(running.stage)
            self.summary.report = record.detail or self.summary.report
            self.records.write(step.slug, record)
            self._clear(running.stage)
            self.claims.keep(step)
            self._mark_done(step, digest)
            if not running.beside:
                step.took(self.run_folder, record.wall_s, record.peak_rss_bytes)
            if child.node == platform.node() and not running.beside:
                self._learn(step, record)
            self.summary.done.append(step.id)
            self._announce(
                step, f"done in {spell_time(record.wall_s)}, peak {spell_size(record.peak_rss_bytes)}"
            )
            return
        reason = child.lost or failure_reason(child.killed_for, child.log, code)
        if child.killed_for == "interrupted" or (self.summary.interrupted and code in (130, -2)):
            self.records.write(step.slug, record)  # stays "running": neither done nor failed
            self._end(step)
            self._announce(step, "stopped")
            return
        if running.beside and code not in (1, 2) and not self.interrupts:  # maybe for another's sake
            self._announce(step, f"{reason}; once more, by itself")
            self.outputs.clear_leftovers([step, *running.beside])
            self._start(step, record)
            return
        network = any(mark in reason for mark in NETWORK)
        if record.attempts <= self.job.resources.retries and (network or child.lost) and not self.interrupts:
            self._announce(step, f"{reason}; retrying")
            self.outputs.clear_leftovers([step])
            time.sleep(0 if child.lost else min(2.0**record.attempts, 10))
            self._start(step, record)
            return
        self._give_up(step, record, reason, running.stage)

    def _give_up(self, step: Step, record: Record, reason: str, stage: Path | None = None) -> None:
        record.status, record.reason = "failed", reason
        self.records.write(step.slug, record)
        step.fail(self.run_folder, reason)
        if stage is not None:
            self._clear(stage)
        self._end(step)
        self.summary.failed.append(step.id)
        self._announce(step, f"FAILED: {reason}" + (f" (log: {record.log})" if record.log else ""))

    def _learn(self, step: Step, record: Record) -> None:
        """What the next plan on this machine will estimate from."""
        cost = self.costs.get(step.id)
        if cost is not None:
            threads = step_threads(self.job)
            add_sample(Sample(cost.rate_kind, cost.work, record.wall_s, record.peak_rss_bytes, threads))

    def _mark_done(self, step: Step, digest: str) -> None:
        self.digests[step.id] = digest
        self._end(step)

    def _end(self, step: Step) -> None:
        self.ended.add(step.id)
        self.claims.release(step)

    def _announce(self, step: Step, what: str) -> None:
        number = next(index for index, other in enumerate(self.plan.steps) if other.id == step.id) + 1
        width = len(str(len(self.plan.steps)))
        self.say(f"[{number:{width}}/{len(self.plan.steps)}] {step.title}: {what}")

    @staticmethod
    def _clear(stage: Path) -> None:
        shutil.rmtree(stage, ignore_errors=True)
