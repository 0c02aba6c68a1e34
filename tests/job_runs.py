"""What tests of jobs look at in a run folder, and how they wait for a process that fills it."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from quantize.artifact.artifact import Artifact
from quantize.results import read_results


def digests(run: Path) -> dict[str, str]:
    return {
        str(path.parent.relative_to(run)): Artifact.load(path.parent).digest
        for path in run.rglob("manifest.json")
    }


def qualities(run: Path) -> dict[tuple[str, str, str], float]:
    """(artifact, metric, protocol or task) -> value, of everything but speeds and memory."""
    found = {}
    for subject, results in read_results(run):
        for result in results:
            if result.metric.startswith(("perplexity", "kl_", "top1")):
                found[subject.name, result.metric, json.dumps(result.protocol, default=str)] = result.value
    assert found
    return found


def until(what: Callable[[], Any], process: subprocess.Popen[str], timeout_s: float = 120) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def standing_step(process: subprocess.Popen[str]) -> psutil.Process:
    """The first step of a run just started, made to stand still: what the test does next happens while the
    run is at work, however slow the machine is. ``resume()`` lets it go on."""

    def at_work() -> list[psutil.Process]:  # not between fork and exec, where it would hold up the runner too
        return [
            step for step in psutil.Process(process.pid).children() if "quantize.process" in step.cmdline()
        ]

    step: psutil.Process = until(at_work, process)[0]
    step.suspend()
    assert process.stderr is not None
    while not (line := process.stderr.readline()).endswith(": ...\n"):  # the runner, too, knows that it runs
        assert line, "the run ended before its first step began"
    return step
