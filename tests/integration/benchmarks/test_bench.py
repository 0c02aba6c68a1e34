"""`quantwright bench` on a real model: contract of its rows, sizes cut to the context out loud, memory of the
process alone."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quantize.errors import Unsupported
from quantize.process import child_command, child_environment
from quantize.results import read_results


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quantize.cli", "bench", *arguments, "--threads", "1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_rows_and_clamping(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    model = make_checkpoint(num_hidden_layers=1, max_position_embeddings=64)
    done = bench(
        str(model),
        "-o",
        str(tmp_path / "run"),
        "--decode",
        "4",
        "--repetitions",
        "3",
        "--depth",
        "0,62",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    rows = {(row["metric"], row["protocol"]): row for row in json.loads(done.stdout.splitlines()[-1])}
    # 512 tokens do not fit 64, and after 62 there is room for two.
    assert set(rows) >= {
        ("pp_tokens_per_s", "pp64"),
        ("ttft_ms", "pp64"),
        ("tg_tokens_per_s", "tg4"),
        ("tg_tokens_per_s", "tg2@d62"),
        ("load_ms", "open"),
        ("peak_memory_bytes", "VmHWM"),
        ("size_bytes", "disk"),
    }
    assert "prefill measured with 64 instead of 512" in done.stderr
    assert "decode measured with 2 instead of 4 after 62" in done.stderr
    for row in rows.values():
        assert row["artifact"] == str(model)
        assert row["value"] > 0
        assert row["n"] == len(row["samples"])
    prefill = rows["pp_tokens_per_s", "pp64"]
    assert prefill["n"] == 3
    assert prefill["value"] == sorted(prefill["samples"])[1]
    assert rows["ttft_ms", "pp64"]["value"] >= 64 / max(prefill["samples"]) * 1e3
    # The weights are in memory, and so is little else beside the libraries.
    peak = rows["peak_memory_bytes", "VmHWM"]
    assert 0 < peak["value"] - peak["detail"]["rss_before_load_bytes"] < 500e6
    ((subject, written),) = read_results(tmp_path / "run")
    assert subject.name == str(model)
    assert subject.size_bytes == rows["size_bytes", "disk"]["value"]
    assert len(written) == len(rows)


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_batches_and_attention(kind: str, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    model = make_checkpoint(num_hidden_layers=1, max_position_embeddings=64)
    if kind == "gguf":
        pytest.importorskip("llama_cpp")
        from quantize import convert

        model = convert(model, "gguf-f32", tmp_path / "gguf", verify="none").folder
    sizes = (
        "--prefill",
        "16",
        "--decode",
        "4",
        "--repetitions",
        "2",
        "--depth",
        "0,8",
        "--batch",
        "1,4",
        "--attention",
        "eager",
    )
    done = bench(str(model), *sizes, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    protocols = {row["protocol"] for row in rows if row["metric"] in ("pp_tokens_per_s", "tg_tokens_per_s")}
    assert protocols == {"pp16", "pp16@b4", "tg4", "tg4@b4", "tg4@d8", "tg4@d8@b4"}
    samples = {row["metric"]: row["samples"] for row in rows if row["protocol"] == "pp16@b4"}
    for rate, first_ms in zip(samples["pp_tokens_per_s"], samples["ttft_ms"], strict=True):
        # the first token of four rows comes after their 64 tokens, on any machine
        assert 64 / rate <= first_ms / 1e3
    assert {row["protocol_parameters"].get("attention") for row in rows} == {"eager"}
    if kind == "folder":
        assert rows[0]["environment"]["runtime"]["attention"] == "eager"


def test_rows_of_a_batch_are_independent(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """In both runtimes, with and without flash attention: what a row gives does not depend on its
    neighbours."""
    pytest.importorskip("llama_cpp")
    import numpy as np

    from quantize import convert
    from quantize.recipe import RunOptions
    from quantize.runtimes.opening import open_runtime

    run = RunOptions(device="cpu", threads=1, progress=False)
    model = make_checkpoint(num_hidden_layers=1, max_position_embeddings=64)
    gguf = convert(model, "gguf-f32", tmp_path / "gguf", verify="none", run=run).folder
    rows = np.arange(1, 25, dtype=np.int64).reshape(3, 8) * 131 % 4096
    for path, names in ((model, ("", "eager", "sdpa")), (gguf, ("", "eager", "flash"))):
        for name in names:
            with open_runtime(path, run) as runtime:
                runtime.tune(name)
                started, stepped = runtime.start_rows(rows[:, :7]), runtime.step_rows(rows[:, 7])
                for row, first, second in zip(rows, started, stepped, strict=True):
                    np.testing.assert_allclose(runtime.start(row[:7].tolist()), first, atol=2e-3)
                    np.testing.assert_allclose(runtime.step(int(row[7])), second, atol=2e-3)
    for path, options in (
        (gguf, {"attention": "sdpa"}),
        (gguf, {"compiled": True}),
        (model, {"attention": "none-such"}),
    ):
        with open_runtime(path, run) as runtime, pytest.raises(Unsupported):
            runtime.tune(**options)


@pytest.mark.long
def test_compiled_code_computes_the_same(make_checkpoint: Callable[..., Path]) -> None:
    import numpy as np

    from quantize.recipe import RunOptions
    from quantize.runtimes.opening import open_runtime

    model = make_checkpoint(num_hidden_layers=1, max_position_embeddings=64)
    ids = list(range(5, 15))
    with open_runtime(model, RunOptions(device="cpu", threads=1, progress=False), context=32) as runtime:
        plain = [runtime.start(ids), runtime.step(7), runtime.step(9)]
        runtime.tune(compiled=True)
        for wanted, got in zip(plain, [runtime.start(ids), runtime.step(7), runtime.step(9)], strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-4)
        assert runtime.describe()["compiled"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{model}", "--batch", "0"], "--batch 0: should be greater than or equal to 1"),
        (["nothing-here"], "nothing-here"),
        (["{model}", "{model}"], "listed twice"),
        (["{model}", "--depth", "a"], "--depth"),
        (["{model}", "--prefill", "0"], "--prefill"),
        (["{model}", "--load-as", "bnb-nf5"], "bnb-nf5"),
    ],
)
def test_bad_input(
    make_checkpoint: Callable[..., Path], arguments: list[str], expected: str, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "llama", "max_position_embeddings": 64}')
    done = bench(*[part.format(model=tmp_path) for part in arguments])
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_peak_memory_is_not_inherited_from_the_parent() -> None:
    ballast = bytearray(300 << 20)
    ballast[:: 1 << 12] = b"x" * len(ballast[:: 1 << 12])
    code = "import quantize.process as p; print(p.peak_rss_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200 << 20
    assert len(ballast) == 300 << 20


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    module = "http.server"  # runs until it is stopped
    code = (
        "import os, subprocess, sys; from quantize.process import *;"
        f"p = subprocess.Popen(child_command({module!r}, '0', '--bind', '127.0.0.1'), "
        "env=child_environment(), "
        "stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True);"
        "p.stdout.readline(); print(p.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    environment = child_environment(PYTHONUNBUFFERED="1")
    parent = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    import time

    import psutil

    child = int(parent.stdout)
    deadline = time.monotonic() + 5
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert child_command("x")[-1] == "x"


def test_gpu_memory_is_what_the_driver_says_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for llama.cpp, which has no allocator to ask. nvidia-smi's CSV: process, MiB."""
    from benchmarks import worker

    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "1, 4000"\necho "$PPID, 300"\necho "$PPID, 21"\n', encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert worker._gpu_bytes() == 321 << 20
    tool.write_text('#!/bin/sh\necho "1, 4000"\n', encoding="utf-8")
    assert not worker._gpu_bytes()


@pytest.mark.gpu
def test_gpu_memory_holds_the_weights(make_checkpoint: Callable[..., Path]) -> None:
    model = make_checkpoint(num_hidden_layers=1, max_position_embeddings=64)
    done = bench(str(model), "--device", "cuda", "--decode", "4", "--repetitions", "2", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["metric"]: row["value"] for row in json.loads(done.stdout.splitlines()[-1])}
    assert rows["size_bytes"] * 0.9 < rows["gpu_memory_bytes"] < rows["size_bytes"] + 1e9
