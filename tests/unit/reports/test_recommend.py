"""Advice: by the worse end of each interval, with the arithmetic, and none where none fits."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from sample_run import RECIPES, speed, subject, write_run

from quantize.checkpoint.kv_cache import KvShape, kv_shape
from quantize.errors import BadInput
from quantize.results import results_path, write_results
from reports.command import recommend as command
from reports.compare import compare
from reports.load import load
from reports.memory import overhead
from reports.recommend import Limits, recommend
from reports.rows import Group, bounds

SHAPE = KvShape(((2048, None),), 4096)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def group(run: Path) -> Group:
    return compare(load([run])).groups[0]


def chosen(group: Group, limits: Limits, shape: KvShape | None = SHAPE) -> str | None:
    advice = recommend(group, limits, {}, shape)
    return advice.chosen.row.label if advice.chosen else None


def test_smallest_within_the_upper_end(group: Group) -> None:
    row = next(row for row in group.rows if row.label == "gguf-q4_k_m")
    value, limits = row.value("kl_mean"), row.bounds("kl_mean")
    assert value is not None
    assert limits is not None
    assert value < limits[1]
    assert chosen(group, Limits(divergence=limits[1])) == "gguf-q4_k_m"
    # The value itself keeps within this limit, the upper end of its interval does not.
    assert chosen(group, Limits(divergence=(value + limits[1]) / 2)) == "gguf-q5_k_m"


def test_memory_arithmetic(group: Group) -> None:
    row = next(row for row in group.rows if row.label == "gguf-q5_k_m")
    rest, how = overhead(row, SHAPE)
    peak, weights = row.value("peak_memory_bytes"), row.subject.size_bytes
    assert peak is not None
    assert weights is not None
    assert rest == round(peak - weights - 128 * 2048)
    assert "measured" in how
    total = weights + 1000 * 2048 + rest
    fits = Limits(memory_bytes=total, context=1000, loss=0.01)
    assert chosen(group, fits) == "gguf-q5_k_m"
    short = recommend(group, replace(fits, memory_bytes=total - 1), {}, SHAPE)
    assert short.chosen is None
    assert short.nearest is not None
    assert short.nearest.row.label == "gguf-q5_k_m"
    (missed,) = short.nearest.missed
    assert missed.name == "memory"
    assert "2.05 MB (1,000 tokens x 2,048 B a token)" in missed.arithmetic
    assert 0 < missed.gap < 1e-6


def test_unknown_cache_is_no_fit(group: Group) -> None:
    advice = recommend(group, Limits(memory_bytes=10**12), {}, None)
    assert advice.chosen is None
    assert advice.nearest is not None
    assert "--kv-bytes-per-token" in advice.nearest.missed[0].arithmetic


def test_speed_counts_by_its_lower_end_and_in_its_own_runtime_only(group: Group, tmp_path: Path) -> None:
    row = next(row for row in group.rows if row.label == "gguf-q4_k_m")
    limits = bounds(row.cells["tg_tokens_per_s"])
    assert limits is not None
    assert chosen(group, Limits(tokens_per_second=limits[0], runtime="llama.cpp")) == "gguf-q4_k_m"
    assert chosen(group, Limits(tokens_per_second=limits[0] * 1.0001, runtime="llamacpp")) is None
    # A GGUF that transformers opened fast says nothing of llama.cpp.
    run = write_run(tmp_path, {"gguf-q8_0": RECIPES["gguf-q8_0"]}, tasks=())
    s = subject("gguf-q8_0")
    write_results(results_path(run, s.name, "bench"), s, speed(s, 500, "transformers"))
    other = compare(load([run])).groups[0]
    advice = recommend(other, Limits(tokens_per_second=10, runtime="llama.cpp"), {}, SHAPE)
    assert advice.chosen is None
    assert advice.nearest is not None
    assert "not in llama.cpp" in advice.nearest.missed[0].arithmetic


def test_runtime_and_speed_that_is_worthless(group: Group, tmp_path: Path) -> None:
    assert chosen(group, Limits(divergence=1, runtime="vllm")) in ("gptq-int4", "awq-int4")
    run = write_run(tmp_path, {"gguf-q8_0": RECIPES["gguf-q8_0"]}, tasks=())
    s = subject("gguf-q8_0")
    rows = [replace(r, detail={"worthless": True}) for r in speed(s, 500, "llama.cpp")]
    write_results(results_path(run, s.name, "bench"), s, rows)
    worthless = compare(load([run])).groups[0]
    assert chosen(worthless, Limits(tokens_per_second=10)) is None
    assert any("too much between repetitions to compare" in w for w in worthless.warnings)


def test_accuracy_drop(group: Group) -> None:
    row = next(row for row in group.rows if row.label == "bnb-nf4")
    interval = row.task_differences["held-out-choice"].interval
    assert interval is not None
    assert chosen(group, Limits(accuracy_drop=-interval[0])) == "bnb-nf4"
    assert chosen(group, Limits(accuracy_drop=-interval[0] - 1e-9)) != "bnb-nf4"


@pytest.mark.parametrize(
    ("config", "tokens", "expected"),
    [
        ({"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64},
         1000, 4 * 2 * 2 * 64 * 2 * 1000),
        ({"num_hidden_layers": 2, "num_attention_heads": 8, "hidden_size": 512}, 10, 2 * 2 * 8 * 64 * 2 * 10),
        (
            {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
            "sliding_window": 512,
             "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
            4096, 2 * 256 * 2 * (2 * 512 + 4096),
        ),
        ({"num_hidden_layers": 2, "num_attention_heads": 16, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, 7,
        2 * 576 * 2 * 7),
        ({"text_config": {"num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}}, 3,
        2 * 2 * 8 * 2 * 3),
    ],
)  # fmt: skip
def test_kv_cache_by_hand(config: dict, tokens: int, expected: int) -> None:  # type: ignore[type-arg]
    shape = kv_shape(config)
    assert shape is not None
    assert shape.bytes_at(tokens) == expected


def test_command(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 64})
    )
    args = [
        str(run),
        "--memory",
        "80MB",
        "--context",
        "512",
        "--max-loss",
        "1%",
        "--runtime",
        "llama.cpp",
        "--model",
        str(tmp_path),
    ]
    result = CliRunner().invoke(command, [*args, "--json"], standalone_mode=False)
    document = json.loads(result.stdout.splitlines()[-1])
    assert document[0]["recommended"] == "gguf-q5_k_m"
    assert {check["name"] for check in document[0]["chosen"]["checks"]} == {"runtime", "loss", "memory"}
    shown = CliRunner().invoke(command, args, standalone_mode=False).stdout
    assert "gguf-q5_k_m" in shown
    assert "not gguf-q4_k_m" in shown
    none = CliRunner().invoke(command, [str(run), "--max-divergence", "1e-9"], standalone_mode=False).stdout
    assert "none" in none
    assert "nearest: gguf-q8_0" in none


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--max-loss", "much"],
        ["--memory", "lots"],
        ["--memory", "1GB", "--model", "/nonexistent"],
        ["--max-loss", "-1%"],
    ],
)
def test_bad_limits(run: Path, args: list[str]) -> None:
    result = CliRunner().invoke(command, [str(run), *args], standalone_mode=False)
    assert isinstance(result.exception, BadInput)
    assert "\n" not in str(result.exception)
