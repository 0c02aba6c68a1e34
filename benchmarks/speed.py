"""Speed and memory of artifacts, each measured in a fresh process, in llama-bench's terms.

``ppN``: tokens per second of processing N tokens in one go from an empty cache. ``tgN``: tokens per second of
N one-token steps from an empty cache (``tgN@dD``: after D tokens). ``@bB``: B sequences at once, tokens of
all of them counted. Ids are random and the same for all models of equal vocabulary; nothing is sampled.
Several rounds go through all models in turn (A B A B), so that a machine that slows down slows all alike.
"""

import json
import shutil
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, load_average
from benchmarks.options import BenchSettings
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.metrics import (
    GPU_MEMORY_BYTES,
    INTER_TOKEN_MS,
    LOAD_MS,
    PEAK_MEMORY_BYTES,
    PP_TOKENS_PER_S,
    SIZE_BYTES,
    TG_TOKENS_PER_S,
    TTFT_MS,
)
from quantize.process import child_command, child_environment
from quantize.recipe import RunOptions
from quantize.results import EvalResult
from quantize.staging import temporary_folder

#: Below this share of the median, the middle half of the samples says that two models can be told apart.
WORTHLESS_SPREAD = 0.20


@dataclass
class Target:
    """``name`` as typed, ``path`` what the runtime opens, ``context`` the most tokens it can take (0: not
    known)."""

    name: str
    path: Path
    size_bytes: int
    digest: str = ""
    load_as: str = ""
    context: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)


Say = Callable[[str], None]


def bench(
    targets: Sequence[Target], options: BenchSettings, run: RunOptions, say: Say
) -> dict[str, list[EvalResult] | Exception]:
    """Measure every target; name -> its results, or what stopped it (the others go on)."""
    before = describe_machine()
    _warn_about_load(before, say)
    outcome: dict[str, list[EvalResult] | Exception] = {}
    for number in range(options.rounds):
        for target in targets:
            if target.name in outcome:
                continue
            turn = f" (round {number + 1} of {options.rounds})" if options.rounds > 1 else ""
            say(f"bench {target.name}{turn}")
            try:
                target.samples.append(measure(target, options, run))
            except (BadInput, Unsupported, StepFailed) as error:
                outcome[target.name] = error
                say(f"{target.name}: {error}")
    environment = {**before, "load_average_after": load_average(), "threads": run.resolved_threads}
    for target in targets:
        if target.name not in outcome:
            outcome[target.name] = results(target, options, environment, say)
    return outcome


def measure(target: Target, options: BenchSettings, run: RunOptions) -> dict[str, Any]:
    """One fresh process; its raw samples (``benchmarks.worker.measure``). Errors: StepFailed with the last
    lines it wrote."""
    with temporary_folder("bench") as folder:
        spec = {
            "path": str(target.path),
            "run": run.model_dump(mode="json"),
            "load_as": target.load_as,
            "options": options.model_dump(mode="json", include=set(BenchSettings.model_fields)),
            "context": target.context,
        }
        (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        threads = str(run.resolved_threads)
        environment = child_environment(
            OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, GGML_NO_BACKTRACE="1"
        )
        command = child_command("benchmarks.worker", str(folder / "spec.json"), str(folder / "out.json"))
        with open(folder / "log", "w+", encoding="utf-8", errors="replace") as log:
            done = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False)
            log.seek(0)
            last = [line.strip() for line in log.read().splitlines() if line.strip()][-3:]
        if done.returncode or not (folder / "out.json").is_file():
            if shutil.disk_usage(folder).free < 4096:
                raise StepFailed(f"{folder.parent}: the disk is full; set TMPDIR to a larger one")
            reason = (
                f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit {done.returncode}"
            )
            raise StepFailed(
                f"{target.name}: the measuring process ended early ({reason}): "
                f"{' | '.join(last) or 'no output'}"
            )
        document: dict[str, Any] = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    if "error" in document:
        raise (BadInput if document["exit_code"] == 2 else StepFailed)(document["error"])
    return document


def results(
    target: Target, options: BenchSettings, environment: dict[str, Any], say: Say
) -> list[EvalResult]:
    """Raw samples of all rounds -> one EvalResult per metric and protocol."""
    rounds = target.samples
    first = rounds[0]
    runtime = first["runtime"]
    backend = str(runtime.get("backend") or runtime.get("name") or "")
    found: list[EvalResult] = []
    parameters: dict[str, Any] = {
        "prefill": first["prefill"],
        "repetitions": options.repetitions,
        "rounds": options.rounds,
    }
    if options.attention:
        parameters["attention"] = options.attention
    if options.compile:
        parameters["compiled"] = True

    def add(metric: str, protocol: str, unit: str, values: Sequence[float], **detail: Any) -> None:
        found.append(
            EvalResult(
                artifact=target.name,
                metric=metric,
                protocol=protocol,
                unit=unit,
                backend=backend,
                artifact_digest=target.digest,
                samples=tuple(values),
                n=len(values),
                protocol_parameters=parameters,
                environment={**environment, "runtime": runtime, "load_as": target.load_as},
                **summarize(values, detail),
            )
        )

    prefill = first["prefill"]
    if prefill < options.prefill:
        say(
            f"{target.name}: its context holds {first['context']} tokens: "
            f"prefill measured with {prefill} instead of {options.prefill}"
        )
    measured = {test["depth"]: test["decode"] for test in first["batches"][0]["decodes"]}
    for depth in options.depths:
        decode = measured.get(depth, 0)
        if decode < options.decode:
            fits = (
                f"decode measured with {decode} instead of {options.decode}"
                if decode
                else "decode not measured"
            )
            say(f"{target.name}: its context holds {first['context']} tokens: {fits} after {depth} tokens")
    for index, batch in enumerate(options.batches):
        taken = [r["batches"][index] for r in rounds]
        suffix = f"@b{batch}" if batch > 1 else ""
        if prefill:
            seconds = [s for r in taken for s in r["prefill_seconds"]]
            add(
                PP_TOKENS_PER_S,
                f"pp{prefill}{suffix}",
                "tokens/s",
                [batch * prefill / s for s in seconds],
                batch=batch,
            )
            first_ms = [1e3 * s for r in taken for s in r["first_token_seconds"]]
            add(TTFT_MS, f"pp{prefill}{suffix}", "ms", first_ms, batch=batch)
        for depth, decode in measured.items():
            protocol = f"tg{decode}" + (f"@d{depth}" if depth else "") + suffix
            runs = [
                steps
                for r in taken
                for test in r["decodes"]
                if test["depth"] == depth
                for steps in test["step_seconds"]
            ]
            rates = [batch * len(steps) / sum(steps) for steps in runs]
            add(TG_TOKENS_PER_S, protocol, "tokens/s", rates, depth=depth, batch=batch)
            gaps = sorted(1e3 * s for steps in runs for s in steps[1:] or steps)
            quantiles = {f"p{q}": _percentile(gaps, q) for q in (50, 90, 95, 99)}
            medians = [1e3 * statistics.median(steps[1:] or steps) for steps in runs]
            add(INTER_TOKEN_MS, protocol, "ms", medians, depth=depth, batch=batch, **quantiles)
    opening = {
        "import_ms": 1e3 * first["import_seconds"],
        "warm_up_ms": 1e3 * first["batches"][0]["warm_up_seconds"],
    }
    add(LOAD_MS, "open", "ms", [1e3 * r["load_seconds"] for r in rounds], **opening)
    peaks = [float(r["peak_rss_bytes"]) for r in rounds]
    add(PEAK_MEMORY_BYTES, "VmHWM", "bytes", peaks, rss_before_load_bytes=first["rss_before_load_bytes"])
    gpus = [float(r["gpu_bytes"]) for r in rounds if r["gpu_bytes"]]
    if gpus:
        add(GPU_MEMORY_BYTES, "allocator", "bytes", gpus)
    add(SIZE_BYTES, "disk", "bytes", [float(target.size_bytes)])
    _warn_about_spread(target.name, found, say)
    return found


def summarize(values: Sequence[float], detail: dict[str, Any]) -> dict[str, Any]:
    """Median as the value; stderr is the standard deviation of the mean, as llama-bench's is of its samples.

    The interval is that of the median by order statistics: at least 95 % from six samples on, else from least
    to greatest, with the coverage that this has in ``detail``.
    """
    n, ordered = len(values), sorted(values)
    median = statistics.median(ordered)
    low, coverage = _median_interval(n)
    deviation = statistics.stdev(ordered) if n > 1 else 0.0
    spread = {
        "mean": statistics.fmean(ordered),
        "stdev": deviation,
        "mad": statistics.median(abs(v - median) for v in ordered),
        "min": ordered[0],
        "max": ordered[-1],
        "interval_coverage": round(coverage, 4),
    }
    return {
        "value": median,
        "stderr": deviation / n**0.5 if n > 1 else None,
        "interval": (ordered[low], ordered[n - 1 - low]) if n > 1 else None,
        "detail": {**spread, **detail},
    }


def _median_interval(n: int) -> tuple[int, float]:
    """How many samples to leave out at each end so that the rest covers the median with at least 95 %; that
    probability."""
    from math import comb

    low, tail = 0, 2 / 2**n
    while low + 1 < n // 2 and tail + 2 * comb(n, low + 1) / 2**n <= 0.05:
        low += 1
        tail += 2 * comb(n, low) / 2**n
    return low, max(0.0, 1 - tail)


def _percentile(ordered: Sequence[float], q: float) -> float:
    position = (len(ordered) - 1) * q / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def relative_spread(result: EvalResult) -> float:
    """Interquartile range over the median of the raw samples."""
    ordered = sorted(result.samples)
    if len(ordered) < 3 or not result.value:
        return 0.0
    return (_percentile(ordered, 75) - _percentile(ordered, 25)) / abs(result.value)


def _warn_about_spread(name: str, found: Sequence[EvalResult], say: Say) -> None:
    for result in found:
        spread = relative_spread(result)
        if result.metric in (PP_TOKENS_PER_S, TG_TOKENS_PER_S) and spread > WORTHLESS_SPREAD:
            result.detail["worthless"] = True
            say(
                f"warning: {name}: {result.protocol}: the middle half of the samples "
                f"spreads over {100 * spread:.0f} % of the median, too noisy to "
                "compare: stop other work, or raise --repetitions and --rounds"
            )


def _warn_about_load(machine: dict[str, Any], say: Say) -> None:
    load, cores = machine["load_average"], machine["cores_usable"]
    if load is not None and load > 0.5 * cores:
        say(
            f"warning: the machine is busy (load average {load} on "
            f"{cores} usable cores): speeds measured now are too low"
        )
