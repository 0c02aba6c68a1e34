"""Every metric that is printed has a name of its own and a way to be written."""

import ast

import pytest
from house import ROOT

from quantize import metrics
from reports.format import METRICS, heading, number

#: Names of fields, options and checks too.
OTHER_MEANINGS = {metrics.PERPLEXITY, metrics.SIZE_BYTES, metrics.ACCURACY}
FILES = [
    path
    for package in ("evals", "benchmarks", "reports")
    for path in (ROOT / package).rglob("*.py")
    if not {"peers", "program"} & set(path.parts)
]


@pytest.mark.parametrize("metric", metrics.ALL)
def test_a_report_can_write_it(metric: str) -> None:
    assert metric in METRICS


def test_no_metric_is_spelled_a_second_time() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.value}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in set(metrics.ALL) - OTHER_MEANINGS
    ]
    assert not wrong, "\n".join(wrong)


def test_benchmarks_print_known_metrics_alone() -> None:
    calls = [
        node
        for node in ast.walk(ast.parse((ROOT / "benchmarks" / "speed.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "add"
    ]
    names = [ast.unparse(call.args[0]) for call in calls]
    assert len(names) > 5
    assert {getattr(metrics, name) for name in names} <= set(metrics.ALL)


def test_gpu_memory_is_a_size() -> None:
    assert (heading("gpu_memory_bytes"), number("gpu_memory_bytes", 1.23e10)) == ("GPU memory", "12.30 GB")
