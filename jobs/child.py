"""One step as a process: started in its own session, watched for time and memory, stopped with all its
children."""

import contextlib
import os
import platform
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from quantize.process import child_command, child_environment, peak_rss_bytes
from quantize.units import spell_gib, spell_time


class Child:
    """``quantwright ARGUMENTS`` with ``cwd`` as working directory; stderr goes to ``log``. ``environment`` is
    added to this process's own."""

    lost = ""
    started = True
    node = platform.node()

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path,
        log: Path,
        stdout: Path,
        keep_open: Sequence[int] = (),
        threads: int | None = None,
        environment: Mapping[str, str] | None = None,
    ):
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self._began = time.monotonic()
        self.peak_rss_bytes = 0
        self.killed_for = ""
        limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} if threads else {}
        with open(log, "ab") as file, open(stdout, "wb") as out:
            file.write(f"$ quantwright {' '.join(map(shlex.quote, arguments))}\n".encode())
            file.flush()
            self.process = subprocess.Popen(
                child_command("quantize.cli", *arguments),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=file,
                env=child_environment(COLUMNS="130", **{**(environment or {}), **limits}),
                start_new_session=True,
                pass_fds=tuple(keep_open),
            )
        self._pidfd = os.pidfd_open(self.process.pid) if hasattr(os, "pidfd_open") else -1

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self._began

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs. Notes the most memory that one of its
        processes has held."""
        if self.process.returncode is None:
            family = [self.pid, *descendants(self.pid)]
            self.peak_rss_bytes = max(self.peak_rss_bytes, *(peak_rss_bytes(pid) for pid in family))
        code = self.process.poll()
        if code is not None and self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        return code

    def enforce(self, memory_bytes: int | None, seconds: float | None) -> None:
        """Kill it where it holds more memory, with its children, or takes longer than allowed."""
        if seconds and self.wall_s > seconds:
            self.kill(f"took longer than its limit of {spell_time(seconds)}")
        elif memory_bytes:
            used = tree_rss_bytes(self.pid)
            if used > memory_bytes:
                self.kill(f"held {spell_gib(used)}, more than its memory limit of {spell_gib(memory_bytes)}")

    def kill(self, why: str) -> None:
        self.killed_for = self.killed_for or why
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    @staticmethod
    def wait(children: Sequence["Child"], timeout_s: float) -> None:
        """Until one of them has ended, or the timeout."""
        fds = [child._pidfd for child in children if child._pidfd >= 0]
        if len(fds) == len(children) and fds:
            select.select(fds, [], [], timeout_s)
        else:
            time.sleep(min(timeout_s, 0.02))


def descendants(pid: int) -> list[int]:
    """Process ids of all children and theirs, from /proc; empty where there is none."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        try:
            threads = os.listdir(f"/proc/{parent}/task")
        except OSError:
            continue
        for thread in threads:
            try:
                with open(f"/proc/{parent}/task/{thread}/children", encoding="ascii") as file:
                    children = [int(part) for part in file.read().split()]
            except OSError:
                continue
            found += children
            waiting += children
    return found


def tree_rss_bytes(pid: int) -> int:
    """Physical memory held by a process and its descendants now; pages they share count once for each."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    total = 0
    for member in family:
        try:
            total += member.memory_info().rss
        except psutil.Error:
            continue
    return total


def last_lines(log: Path, count: int = 4) -> list[str]:
    """The last lines that say something; progress bars and rulers left out."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - 16_384))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.split("\r")[-1].strip() for line in text.splitlines()]
    return [
        line
        for line in lines
        if line and not line.startswith("$ quantwright") and any(c.isalnum() for c in line)
    ][-count:]


def failure_reason(killed_for: str, log: Path, code: int) -> str:
    """Why a step ended badly, in one line."""
    if killed_for:
        return killed_for
    lines = last_lines(log)
    ours = [line.removeprefix("quantwright: ") for line in lines if line.startswith("quantwright: ")]
    if ours:
        return ours[-1]
    if code < 0:
        name = signal.Signals(-code).name
        hint = ": the system ran out of memory, or someone killed it" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}" + (f"; last line: {lines[-1]}" if lines else "")
    return f"exit code {code}" + (f": {lines[-1]}" if lines else "")
