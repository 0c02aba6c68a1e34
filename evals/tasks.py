"""Task accuracy through lm-eval, for whatever a runtime opens: rows with each item's outcome, for paired tests."""

import contextlib
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from evals import statistics
from evals.result import EvalResult
from evals.rows import Heading, interval, number
from evals.task_files import HarnessTask, LocalTask, Task, task_manager
from quantize.errors import QuantwrightError, StepFailed
from quantize.runtimes import Runtime
from quantize.tokenizer import SourceTokenizer

PROTOCOL = "lm-eval"
METRIC_NAMES = {"acc": "accuracy", "acc_norm": "accuracy_norm"}
BOOTSTRAP_ITERATIONS = 1000


def run_tasks(
    runtime: Runtime,
    tasks: Sequence[Task],
    source: SourceTokenizer | None,
    heading: Heading,
    limit: int | None,
    progress: bool,
    special: dict[str, int | None],
) -> list[EvalResult]:
    """One row per task and metric of lm-eval's. ``special``: ``bos`` and ``eos`` ids. ``limit``: items of each task.

    Errors: StepFailed where lm-eval fails on a task, with its reason.
    """
    from evals.harness import RuntimeLM

    rows: list[EvalResult] = []
    for task in tasks:
        with _progress(f"{heading.artifact} {Path(task.name).stem}", progress) as advance:
            model = RuntimeLM(runtime, source, bos=special.get("bos"), eos=special.get("eos"), advance=advance)
            rows += _one_task(model, task, heading, limit, "source" if source else "runtime")
    return rows


def _one_task(model: Any, task: Task, heading: Heading, limit: int | None, ids: str) -> list[EvalResult]:
    from lm_eval import simple_evaluate

    spec = task.lm_eval_config() if isinstance(task, LocalTask) else task.name
    manager = task_manager(isinstance(task, HarnessTask) and task.known)
    with _quiet(), np.errstate(invalid="ignore"):  # likelihoods of zero, of logits that are not finite
        try:
            outcome = simple_evaluate(
                model=model, tasks=[spec], limit=limit, bootstrap_iters=BOOTSTRAP_ITERATIONS, task_manager=manager
            )
        except QuantwrightError:
            raise
        except (OSError, ConnectionError) as error:
            raise StepFailed(
                f"task {task.name}: its data cannot be fetched ({_first_line(error)}); connect, or use a local file"
            ) from error
        except (ValueError, KeyError, AssertionError, TypeError) as error:
            raise StepFailed(f"task {task.name}: lm-eval failed: {type(error).__name__}: {_first_line(error)}") from error
    rows: list[EvalResult] = []
    for name, metrics in outcome["results"].items():
        samples = sorted(outcome["samples"].get(name, []), key=lambda s: s["doc_id"])
        shots = outcome.get("n-shot", {}).get(name, 0)
        base = EvalResult(
            artifact=heading.artifact,
            metric="",
            protocol=PROTOCOL,
            value=None,
            task=name,
            role=heading.role,
            ids=ids,
            backend=heading.backend,
            artifact_digest=heading.digest,
            protocol_parameters={
                "lm_eval": metadata.version("lm_eval"),
                "num_fewshot": shots,
                "limit": limit,
                "task_version": outcome.get("versions", {}).get(name),
                "task_hash": outcome.get("task_hashes", {}).get(name),
            },
            environment=heading.environment,
            detail={"file": str(task.path)} if isinstance(task, LocalTask) else {},
        )
        spoilt = {item for task_name, item in model.non_finite if task_name == name}
        rows += [_row(base, key, value, metrics, samples, spoilt) for key, value in metrics.items() if _is_metric(key, value)]
    return rows


def _is_metric(key: str, value: Any) -> bool:
    return "," in key and "_stderr" not in key and isinstance(value, (int, float))


def _row(
    base: EvalResult, key: str, value: float, metrics: dict[str, Any], samples: list[dict[str, Any]], spoilt: set[int | None]
) -> EvalResult:
    """``spoilt``: items with logits that were not finite. They count as wrong, whichever choice lm-eval took for likeliest."""
    metric, _, chosen_filter = key.partition(",")
    stderr = metrics.get(f"{metric}_stderr,{chosen_filter}")
    asked = [s for s in samples if metric in s and s.get("filter", chosen_filter) == chosen_filter]
    items = [s[metric] for s in asked]
    per_item = [float(x) for x in items if isinstance(x, (int, float)) and math.isfinite(float(x))]
    whole = len(per_item) == len(items)
    if spoilt:
        words = f"{len(spoilt)} of {len(items)} items had logits that are not finite"
        if set(per_item) <= {0.0, 1.0} and whole:
            per_item = [0.0 if s["doc_id"] in spoilt else x for s, x in zip(asked, per_item, strict=True)]
            value, stderr = float(np.mean(per_item)), statistics.mean_stderr(np.array(per_item))
            words += " and count as wrong"
        remark = f"{base.artifact}, {base.task}: {words}"
        base = replace(base, detail=base.detail | {"non_finite_items": len(spoilt), "remarks": [remark]})
    bounds = None
    if whole and per_item and set(per_item) <= {0.0, 1.0}:
        bounds = interval(statistics.accuracy_interval(np.array(per_item)))
    elif whole and len(per_item) > 1 and metric not in ("perplexity",):
        bounds = interval(statistics.mean_interval(np.array(per_item), np.ones(len(per_item))))
    return replace(
        base,
        metric=METRIC_NAMES.get(metric, metric),
        value=number(float(value)),
        stderr=number(float(stderr)) if isinstance(stderr, (int, float)) else None,
        interval=bounds,
        n=len(items),
        samples=tuple(per_item) if whole else (),
        detail=base.detail | ({"filter": chosen_filter} if chosen_filter != "none" else {}),
    )


def pair_with_reference(rows: list[EvalResult]) -> list[EvalResult]:
    """Adds ``vs_reference`` (difference, interval, p of exact McNemar, p adjusted by Holm over the candidates) to task rows."""
    known = {(r.task, r.metric): r for r in rows if r.task and r.role == "reference" and r.samples}
    found: dict[int, statistics.Difference] = {}
    for index, row in enumerate(rows):
        base = known.get((row.task, row.metric))
        if base and row.role == "" and len(row.samples) == len(base.samples) and set(base.samples + row.samples) <= {0.0, 1.0}:
            found[index] = statistics.accuracy_difference(np.array(row.samples), np.array(base.samples))
    out = list(rows)
    for task, metric in known:
        members = [i for i in found if (rows[i].task, rows[i].metric) == (task, metric)]
        adjusted = statistics.holm([found[i].p_value or 0.0 for i in members])
        for index, p in zip(members, adjusted, strict=True):
            difference = found[index]
            paired = {
                "difference": difference.value,
                "interval": interval(difference.interval),
                "p_mcnemar": difference.p_value,
                "p_holm": p,
            }
            out[index] = replace(rows[index], detail=rows[index].detail | {"vs_reference": paired})
    return out


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval and datasets log much that is not for this program's user."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    import datasets

    shown = datasets.is_progress_bar_enabled() if hasattr(datasets, "is_progress_bar_enabled") else True
    datasets.disable_progress_bars()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # lm-eval prints; stdout is for results
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def _progress(what: str, wanted: bool) -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not wanted) as bar:

        def begin(unit: str, total: int) -> Callable[[int], None]:
            task = bar.add_task(f"{what} {unit}", total=total)
            return lambda n: bar.advance(task, n)

        yield begin


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]
