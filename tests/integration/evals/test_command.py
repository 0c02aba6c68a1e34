"""`quantwright eval`: what it prints, bad input, and what one artifact's failure costs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from eval_runs import RUN

from evals import evaluate
from quantize.cli import cli
from quantize.errors import BadInput, QuantwrightError, StepFailed
from quantize.results import read_results


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["eval", *map(str, arguments), "--threads", "1"])


def test_json_is_the_last_line_of_stdout(
    checkpoint: Path, candidate: Path, text: Path, tmp_path: Path
) -> None:
    task = tmp_path / "t.jsonl"
    task.write_text(
        '{"query": "One and", "choices": ["two", "elephants"], "gold": 0}\n' * 3, encoding="utf-8"
    )
    done = invoke(
        candidate, checkpoint, "--reference", checkpoint, "--text", text, "--tokens", 1000, "--protocol",
        "gptq-64,llamacpp-64",
        "--tasks", task, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout.strip().splitlines()[-1])
    assert all({"metric", "protocol", "value", "stderr", "artifact"} <= set(row) for row in rows)
    assert all(isinstance(row["protocol"], str) and isinstance(row["value"], float) for row in rows)
    keys = [(row["artifact"], row["protocol"], row["task"], row["metric"]) for row in rows]
    assert [row["role"] == "floor" for row in rows] == sorted(row["role"] == "floor" for row in rows)
    assert len(keys) == len(set(keys))
    order = list(dict.fromkeys((row["artifact"], row["protocol"]) for row in rows if row["role"] != "floor"))
    protocols = ["gptq-64", "llamacpp-64", "lm-eval"]
    assert order == [
        (str(artifact), protocol) for artifact in (candidate, checkpoint) for protocol in protocols
    ]
    assert {row["metric"] for row in rows if row["task"]} == {"accuracy", "accuracy_norm"}
    assert {row["role"] for row in rows} == {"", "reference", "floor"}


BAD: list[tuple[list[str], str]] = [
    (["--protocol", "lamacpp-512"], "did you mean llamacpp-512"),
    (["--metrics", "perplexty"], "did you mean perplexity"),
    (["--metrics", "divergence"], "give --reference MODEL"),
    (["--text", "{tmp}/none.txt"], "no such text file"),
    (["--text", "{tmp}/empty.txt"], "is empty"),
    (["--text", "{tmp}/short.txt", "--protocol", "llamacpp-128"], "needs a text of at least 256 tokens"),
    (["--text", "{tmp}/gbk.txt"], "not UTF-8"),
    (["--tasks", "{tmp}/bad.jsonl"], "bad.jsonl:2: not valid JSON"),
    (["--tasks", ","], "expected at least one name"),
    (["--load-as", "no-such-recipe"], "unknown recipe"),
    (["--reference", "{tmp}/nothing"], "no such folder"),
    (["--prompts", "{tmp}/none.txt"], "no such text file"),
    (["--prompts", "{tmp}/bad.jsonl"], "bad.jsonl:1: expected"),
]


@pytest.mark.parametrize(("options", "expected"), BAD, ids=[" ".join(o) for o, _ in BAD])
def test_bad_input(checkpoint: Path, tmp_path: Path, options: list[str], expected: str) -> None:
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "short.txt").write_text("Too short.", encoding="utf-8")
    (tmp_path / "gbk.txt").write_bytes("量化模型".encode("gbk") * 50)
    (tmp_path / "bad.jsonl").write_text(
        '{"query": "a", "choices": ["b", "c"], "gold": 0}\n{', encoding="utf-8"
    )
    out = tmp_path / "run"
    done = invoke(checkpoint, *[option.format(tmp=tmp_path) for option in options], "-o", out)
    assert isinstance(done.exception, QuantwrightError)
    assert done.exception.exit_code == 2
    assert expected in str(done.exception)
    assert "\n" not in str(done.exception)


def test_bad_artifacts(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "fake.gguf").write_bytes(b"not gguf at all")
    (tmp_path / "empty").mkdir()
    for name, expected in (
        ("fake.gguf", "not a GGUF file"),
        ("none.gguf", "no such file"),
        ("empty", "neither manifest.json, config.json"),
    ):
        with pytest.raises(BadInput, match=expected):
            evaluate([tmp_path / name], run=RUN)
    with pytest.raises(BadInput, match="listed twice"):
        CliRunner().invoke(cli, ["eval", str(checkpoint), str(checkpoint)], catch_exceptions=False)


def test_another_vocabulary_is_a_clear_error_and_costs_one_artifact(
    checkpoint: Path, candidate: Path, make_checkpoint: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    other = make_checkpoint(vocab_size=4160)
    said: list[str] = []
    with pytest.raises(BadInput, match="logits for 4160 tokens, the reference for 4096"):
        evaluate(
            [other, candidate],
            reference=checkpoint,
            text=text,
            tokens=600,
            protocol="gptq-64",
            run=RUN,
            out=tmp_path,
            say=said.append,
        )
    written = {subject.name: (subject, rows) for subject, rows in read_results(tmp_path)}
    assert written[str(other)][0].status == "unsupported"
    assert "4160" in written[str(other)][0].reason
    assert len(written[str(candidate)][1]) > 10
    assert any(line.startswith(f"failed: {other}") for line in said)


def test_an_artifact_whose_library_fails_costs_its_own_rows_alone(
    checkpoint: Path,
    make_checkpoint: Callable[..., Path],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward = LlamaMLP.forward

    def broken(self: LlamaMLP, x: Any) -> Any:
        if self.intermediate_size == 640:
            raise ValueError("no such kernel\nsecond line")
        return forward(self, x)

    monkeypatch.setattr(LlamaMLP, "forward", broken)
    other = make_checkpoint(intermediate_size=640)
    said: list[str] = []
    with pytest.raises(StepFailed, match=r"ValueError: no such kernel$"):
        evaluate(
            [other, checkpoint],
            text=text,
            tokens=600,
            protocol="gptq-64",
            run=RUN,
            out=tmp_path,
            say=said.append,
        )
    written = {subject.name: (subject, rows) for subject, rows in read_results(tmp_path)}
    assert (written[str(other)][0].status, written[str(other)][0].reason) == (
        "failed",
        "ValueError: no such kernel",
    )
    assert len(written[str(checkpoint)][1]) == 2
    assert any("Traceback" in line for line in said)
