"""An options object and its command line say the same, whichever way."""

from pathlib import Path
from typing import Any

import click
import pytest

from benchmarks.command import bench
from benchmarks.options import BenchOptions
from evals.command import evaluate
from evals.options import EvalOptions
from quantize.errors import BadInput
from quantize.options import Options

EVAL: dict[str, Any] = {
    "text": Path("t.txt"), "metrics": ["divergence"], "protocol": ["gptq-64", "exl3-64"], "ids": "runtime",
    "tasks": ["a", Path("b.jsonl")], "limit": 3, "num_fewshot": 0, "apply_chat_template": True,
    "chat_template": "terse", "allow_code_execution": True, "allow_task_code": True, "prompts": "p.txt",
    "generate": 9, "tokens": 100, "cache_limit": "1GiB", "floors": False, "weights_only": "none",
    "runtime": "vllm", "reference": "r", "load_as": "bnb-nf4", "cache": "c", "prune": True,
}  # fmt: skip
BENCH: dict[str, Any] = {
    "prefill": 8, "decode": 4, "repetitions": 1, "rounds": 2, "depths": [0, 64], "batches": [8, 1],
    "attention": "eager", "compile": True, "runtime": "vllm", "load_as": "quanto-int8", "prune": True,
}  # fmt: skip


def parsed(command: click.Command, model: type[Options], arguments: list[str]) -> Options:
    """What the command makes of its options."""
    given = command.make_context("x", ["artifact", *arguments]).params
    return model.of(**{name: given[name] for name in model.model_fields if given[name] is not None})


@pytest.mark.parametrize(
    ("command", "model", "values"), [(evaluate, EvalOptions, EVAL), (bench, BenchOptions, BENCH)]
)
def test_every_field_has_an_option_that_says_it(
    command: click.Command, model: type[Options], values: dict[str, Any]
) -> None:
    assert values.keys() == model.model_fields.keys()
    whole = model.of(**values)
    assert parsed(command, model, whole.arguments()) == whole
    for name, value in values.items():
        alone = model.of(**{name: value})
        assert alone.arguments()
        assert getattr(parsed(command, model, alone.arguments()), name) == getattr(alone, name)
    assert model().arguments() == []


def test_what_the_help_shows_is_what_is_meant_without_it() -> None:
    said = parsed(evaluate, EvalOptions, [])
    assert isinstance(said, EvalOptions)
    assert said.protocols == EvalOptions().protocols == ["llamacpp-512"]
    assert said.cache_limit_bytes == EvalOptions().cache_limit_bytes == 4 << 30
    assert parsed(bench, BenchOptions, []) == BenchOptions()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"metrics": ["perplexty"]},
            "--metrics 'perplexty': expected perplexity or divergence (did you mean",
        ),
        ({"ids": "both"}, "--ids 'both': expected source or runtime"),
        ({"limit": 0}, "--limit 0: should be greater than or equal to 1"),
        ({"cache_limit": "much"}, "--cache-limit 'much': expected something like 8GiB"),
        ({"metric": "perplexity"}, "no option 'metric' (did you mean metrics?)"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadInput) as caught:
        EvalOptions.of(**values)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_depths_are_measured_once_each_and_in_order() -> None:
    assert parsed(bench, BenchOptions, ["--depth", "64,0,64"]) == BenchOptions(depths=[0, 64])
    with pytest.raises(BadInput, match="--depth 'deep': expected whole numbers separated by commas"):
        parsed(bench, BenchOptions, ["--depth", "deep"])
