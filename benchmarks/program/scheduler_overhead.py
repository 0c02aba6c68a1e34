"""What the job runner adds to each step beyond starting its process: ``python -m
benchmarks.program.scheduler_overhead [STEPS]``.

The same command (``quantwright --version``) as steps of a real run, and started one after another with
nothing else around it; in turns, so that a change in the machine's load meets both. On a busy machine the
processor time of the runner itself says more.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jobs.plan import Plan
from jobs.runner import Runner
from jobs.spec import Job
from jobs.steps.step import Step
from quantize.process import child_command, child_environment

BLOCK = 25


@dataclass(frozen=True, eq=False, kw_only=True)
class Trivial(Step):
    """The lock file is there in every run: a file that needs no making stands for the output."""

    kind: ClassVar[str] = "trivial"
    alone: ClassVar[bool] = True

    arguments: tuple[str, ...] = ("--version",)
    output: Path = Path(".lock")
    number: int

    @property
    def id(self) -> str:
        return f"{self.kind}:{self.number}"

    def _digest(self, run: Path) -> str | None:
        return str(self.number) if (run / self.output).is_file() else None


def measure(steps: int) -> dict[str, float]:
    """Seconds a step: in the runner and bare; their difference, and the runner's own processor time, in ms a
    step."""
    job = Job.model_validate({"models": ["none"], "report": False})
    in_runner = bare = processor = 0.0
    with tempfile.TemporaryDirectory(prefix="quantwright-overhead-") as folder:
        run = Path(folder) / "run"
        done = 0
        while done < steps:
            count = min(BLOCK, steps - done)
            made: list[Step] = [Trivial(number=done + i) for i in range(count)]
            begin, used = time.perf_counter(), time.process_time()
            summary = Runner(Path(folder) / "job.yaml", job, Plan(made, [], []), run, lambda text: None).run()
            in_runner += time.perf_counter() - begin
            processor += time.process_time() - used
            assert len(summary.done) == count, summary
            begin = time.perf_counter()
            for _ in range(count):
                subprocess.run(
                    child_command("quantize.cli", "--version"),
                    env=child_environment(),
                    stdout=subprocess.DEVNULL,
                    check=True,
                )
            bare += time.perf_counter() - begin
            done += count
    return {
        "steps": steps,
        "runner_s": in_runner / steps,
        "bare_s": bare / steps,
        "overhead_ms": 1e3 * (in_runner - bare) / steps,
        "runner_processor_ms": 1e3 * processor / steps,
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 300)))
