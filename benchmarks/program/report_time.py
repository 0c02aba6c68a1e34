"""How long ``quantwright --help`` and ``report`` take: ``python -m benchmarks.program.report_time RUN
[ARTIFACTS]``.

The results of RUN (made by ``eval`` and ``bench``) are copied under new names until there are ARTIFACTS
(100), and reported. Targets: help in 0.2 s, a report on 100 artifacts in 3 s. Best of three, with the
processor time beside the wall time, which on a busy machine says more.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from quantize.process import child_command, child_environment
from quantize.results import read_results, results_path, write_results


def enlarge(run: Path, target: Path, artifacts: int) -> int:
    """Copies of ``run``'s artifacts (references and floors once); returns the number of results."""
    found = read_results(run)
    originals = [(s, rows) for s, rows in found if s.role == "" and rows]
    names = list(dict.fromkeys(s.name for s, _ in originals))
    count = 0
    for subject, rows in found:
        if subject.role:
            write_results(results_path(target, subject.name, "eval"), subject, rows)
            count += len(rows)
    for number in range(artifacts):
        for part, (subject, rows) in enumerate(
            (s, r) for s, r in originals if s.name == names[number % len(names)]
        ):
            copy = replace(subject, name=f"{subject.name}-{number}", digest=f"{subject.digest}{number}")
            renamed = [replace(row, artifact=copy.name, artifact_digest=copy.digest) for row in rows]
            write_results(results_path(target, copy.name, f"part{part}"), copy, renamed)
            count += len(rows)
    return count


def best(arguments: Sequence[str], times: int = 3) -> tuple[float, float]:
    """(wall, processor) seconds of the fastest of several runs."""
    found = []
    for _ in range(times):
        began, before = time.perf_counter(), os.times()
        subprocess.run(
            child_command("quantize.cli", *arguments),
            env=child_environment(),
            stdout=subprocess.DEVNULL,
            check=True,
        )
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        found.append((time.perf_counter() - began, used))
    return min(found)


def measure(run: Path, artifacts: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="quantwright-report-") as name:
        folder = Path(name)
        results = enlarge(run, folder / "run", artifacts)
        help_s, help_cpu_s = best(["--help"])
        report_s, report_cpu_s = best(["report", str(folder / "run"), "--json"])
        size = (folder / "run" / "report" / "index.html").stat().st_size
    return {
        "artifacts": artifacts,
        "results": results,
        "help_s": help_s,
        "help_processor_s": help_cpu_s,
        "report_s": report_s,
        "report_processor_s": report_cpu_s,
        "html_bytes": size,
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100)))
