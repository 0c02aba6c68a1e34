"""lm-eval's outcome as rows, with each item's own, and pairs of rows compared."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import metadata
from typing import Any

import numpy as np

from evals import statistics
from evals.local_task import LocalTask
from evals.options import EvalSettings
from evals.rows import Heading, interval, number
from evals.task_files import Task
from quantize.metrics import ACCURACY, ACCURACY_NORM, ACCURACY_PER_TOKEN, PASS_AT_1
from quantize.results import EvalResult
from quantize.runtimes.llamacpp_tree import common_beginning

PROTOCOL = "lm-eval"

METRIC_NAMES = {"acc": ACCURACY, "acc_norm": ACCURACY_NORM, "pass@1": PASS_AT_1}

PER_TOKEN = ACCURACY_PER_TOKEN

OWN_EXAMPLE = (
    "lm-eval draws examples from the measured items, so an item can be its own example; "
    "give the task a test_split and the same fewshot_split, or other data for examples"
)


def task_rows(
    outcome: dict[str, Any], model: Any, task: Task, heading: Heading, options: EvalSettings, ids: str
) -> list[EvalResult]:
    """A row for each metric of the task, or of a group that lm-eval averages. ``outcome`` is lm-eval's, of
    ``model``, a ``RuntimeLM``."""
    if isinstance(task, LocalTask) and task.is_hellaswag:
        _score_per_token(outcome, task.name, model.scored)
    rows: list[EvalResult] = []
    for name, metrics, members in _measured(outcome):
        samples = [
            sample | {"item": (member, sample["doc_id"])}
            for member in members
            for sample in sorted(outcome["samples"].get(member, []), key=lambda s: s["doc_id"])
        ]
        said = [
            *sorted(model.remarks),
            *([OWN_EXAMPLE] if any(_is_its_own_example(outcome, m) for m in members) else []),
        ]
        remarks = [f"{name}: {remark}" for remark in said]
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
                "num_fewshot": outcome.get("n-shot", {}).get(name, 0),
                "limit": options.limit,
                "task_version": outcome.get("versions", {}).get(name),
                "chat_template": model.template.sha256 if model.template else None,
            },
            environment=heading.environment | {"items_sha256": _hash_of(samples)},
            detail={"typed": task.typed or task.name}
            | ({"file": str(task.path)} if task.path else {})
            | ({"remarks": remarks} if remarks else {}),
        )
        for key, value in metrics.items():
            if _is_metric(key, value):
                parts = {
                    m: v
                    for m in members
                    if members != [name] and (v := outcome["results"][m].get(key)) is not None
                }
                own = replace(base, detail=base.detail | {"members": parts}) if parts else base
                rows.append(_row(own, key, value, metrics, samples, model.non_finite))
    return rows


def _score_per_token(
    outcome: dict[str, Any], name: str, scored: Mapping[tuple[str, str], tuple[list[int], np.ndarray]]
) -> None:
    """Adds llama-perplexity's ``--hellaswag`` to lm-eval's outcome: the mean over tokens from the first that
    differs decides."""
    for sample in outcome["samples"][name]:
        choices = [scored[tuple(pair)] for pair in sample["arguments"]]
        shared = common_beginning([tokens for tokens, _ in choices])
        means = [
            log_probs[shared:].mean() if len(log_probs) > shared else -math.inf for _, log_probs in choices
        ]
        sample[PER_TOKEN] = float(np.argmax(means) == sample["doc"]["gold"])
    right = np.array([sample[PER_TOKEN] for sample in outcome["samples"][name]])
    outcome["results"][name] |= {
        f"{PER_TOKEN},none": right.mean(),
        f"{PER_TOKEN}_stderr,none": statistics.mean_stderr(right),
    }


def _measured(outcome: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """(name, metrics, tasks) of every task, and in place of tasks whose average lm-eval takes, of the
    group."""
    children: dict[str, list[str]] = outcome.get("group_subtasks", {})

    def below(name: str) -> list[str]:
        return [task for child in children[name] for task in below(child)] if name in children else [name]

    results: dict[str, dict[str, Any]] = outcome["results"]
    averaged = {g: below(g) for g in children if any(_is_metric(k, v) for k, v in results.get(g, {}).items())}
    inner = {name for group, tasks in averaged.items() for name in (*tasks, *_groups_below(children, group))}
    for name, metrics in results.items():
        if name not in inner and (name in averaged or name not in children):
            yield name, metrics, averaged.get(name, [name])


def _groups_below(children: dict[str, list[str]], group: str) -> list[str]:
    inner = [child for child in children[group] if child in children]
    return [*inner, *(name for child in inner for name in _groups_below(children, child))]


def _is_its_own_example(outcome: dict[str, Any], task: str) -> bool:
    """Whether lm-eval draws a task's examples from the very items that it measures, and leaves none out."""
    config = outcome.get("configs", {}).get(task, {})
    if not outcome.get("n-shot", {}).get(task) or (config.get("fewshot_config") or {}).get("samples"):
        return False
    test, validation, split = (
        config.get("test_split"),
        config.get("validation_split"),
        config.get("fewshot_split"),
    )
    source = split or config.get("training_split") or validation or test
    return source == (test or validation) and split != test


def _hash_of(samples: list[dict[str, Any]]) -> str:
    """Of every item and what was asked about it: few-shot examples and chat template are part of that."""
    parts = {f"{s['doc_hash']} {s['prompt_hash']} {s['target_hash']}": None for s in samples}
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _is_metric(key: str, value: Any) -> bool:
    return "," in key and "_stderr" not in key and isinstance(value, (int, float))


def _row(
    base: EvalResult,
    key: str,
    value: float,
    metrics: dict[str, Any],
    samples: list[dict[str, Any]],
    non_finite: set[Any],
) -> EvalResult:
    """``non_finite``: items with such logits. They count as wrong, whatever lm-eval found likeliest."""
    metric, _, chosen_filter = key.partition(",")
    stderr = metrics.get(f"{metric}_stderr,{chosen_filter}")
    asked = [s for s in samples if metric in s and s.get("filter", chosen_filter) == chosen_filter]
    items = [s[metric] for s in asked]
    per_item = [float(x) for x in items if isinstance(x, (int, float)) and math.isfinite(float(x))]
    whole = len(per_item) == len(items)
    if spoilt := {s["item"] for s in asked} & non_finite:
        words = f"{len(spoilt)} of {len(items)} items had logits that are not finite"
        if set(per_item) <= {0.0, 1.0} and whole:
            per_item = [0.0 if s["item"] in spoilt else x for s, x in zip(asked, per_item, strict=True)]
            value, stderr = float(np.mean(per_item)), statistics.mean_stderr(np.array(per_item))
            words += " and count as wrong"
        remark = f"{base.artifact}, {base.task}: {words}"
        remarks = [*base.detail.get("remarks", ()), remark]
        base = replace(base, detail=base.detail | {"non_finite_items": len(spoilt), "remarks": remarks})
    if "members" in base.detail and whole and per_item and not math.isclose(float(np.mean(per_item)), value):
        whole = False  # an average of averages, unrelated to the spread of its items
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
        protocol_parameters=base.protocol_parameters
        | ({"filter": chosen_filter} if chosen_filter != "none" else {}),
    )


def pair_with_reference(rows: list[EvalResult]) -> list[EvalResult]:
    """Adds ``vs_reference`` (difference, interval, p of exact McNemar, p adjusted by Holm over the
    candidates) to task rows."""
    known = {_asked(r): r for r in rows if r.task and r.role == "reference" and r.samples}
    found: dict[int, statistics.Difference] = {}
    for index, row in enumerate(rows):
        base = known.get(_asked(row))
        if (
            base
            and row.role == ""
            and len(row.samples) == len(base.samples)
            and set(base.samples + row.samples) <= {0.0, 1.0}
        ):
            found[index] = statistics.accuracy_difference(np.array(row.samples), np.array(base.samples))
    out = list(rows)
    for asked in known:
        members = [i for i in found if _asked(rows[i]) == asked]
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


def _asked(row: EvalResult) -> tuple[Any, ...]:
    """What a row measures: a task has rows of several metrics and filters, and two tasks may share a name."""
    return (
        row.task,
        row.metric,
        repr(sorted(row.protocol_parameters.items())),
        row.environment.get("items_sha256"),
    )
