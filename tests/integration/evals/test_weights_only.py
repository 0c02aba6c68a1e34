"""What a GGUF's weights alone do, on a share of the text, beside the file itself on the same tokens."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals import evaluate
from evals.protocols import parse_protocol
from evals.weights_only import chosen_windows
from evals.windows import make_windows
from quantize.calibration.texts import stdlib_documentation
from quantize.conversion import convert
from quantize.errors import BadInput
from quantize.recipe import RunOptions
from quantize.results import EvalResult
from reports import build

RUN = RunOptions(threads=1, progress=False)


def test_a_share_of_the_windows_gives_what_the_whole_gives_there(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_checkpoint()
    convert(source, "gguf-q4_0", tmp_path / "gguf", verify="none", run=RUN)
    text = tmp_path / "text.txt"
    text.write_text(stdlib_documentation()[40_000:52_000], encoding="utf-8")

    def rows(how_much: str, **more: Any) -> dict[str, EvalResult]:
        found = evaluate(
            [tmp_path / "gguf"],
            reference=source,
            text=text,
            protocol="llamacpp-32",
            weights_only=how_much,
            run=RUN,
            **more,
        )
        return {row.metric: row for row in found}

    whole, part = rows("full"), rows("sample", out=tmp_path / "run")
    count = len(whole["kl_mean"].samples)
    assert count > 90
    indices = [
        (2 * i + 1) * count // (2 * part["kl_weights_only"].detail["chunks"])
        for i in range(max(2, -(-count // 80)))
    ]
    for metric, of_all in (("kl_weights_only", "kl_weights_only"), ("kl_same_tokens", "kl_mean")):
        row = part[metric]
        assert whole[metric].n == whole["kl_mean"].n
        assert row.samples == pytest.approx([whole[of_all].samples[i] for i in indices], rel=1e-6)
        assert row.value == pytest.approx(np.mean(row.samples))
        assert row.n == len(indices) * 15
        assert row.interval
        assert row.interval[0] < row.value < row.interval[1]
        assert row.detail["of_chunks"] == count
        assert row.environment["ids_sha256"] == part["kl_weights_only"].environment["ids_sha256"]
        assert row.environment["ids_sha256"] != part["kl_mean"].environment["ids_sha256"]
    # The weights are the larger part of it, the activations that llama.cpp rounds the smaller.
    assert part["kl_weights_only"].value == pytest.approx(part["kl_same_tokens"].value, rel=0.5)

    report = Path(build([tmp_path / "run"])["report"])
    noted = f"on the same {part['kl_weights_only'].n:,} tokens"
    assert noted in report.read_text(encoding="utf-8")
    shown = json.loads(report.with_name("report.json").read_text(encoding="utf-8"))["rows"][0]
    assert all(shown[metric] == part[metric].value for metric in ("kl_weights_only", "kl_same_tokens"))

    shutil.copy(next((tmp_path / "gguf").glob("*.gguf")), tmp_path / "theirs.gguf")
    theirs = evaluate(
        [tmp_path / "theirs.gguf"], reference=source, text=text, protocol="llamacpp-32", run=RUN
    )
    assert [row.value for row in theirs if row.metric == "kl_weights_only"] == [part["kl_weights_only"].value]

    beside = rows("sample", cache_limit=1000)
    for metric in ("kl_weights_only", "kl_same_tokens"):
        assert beside[metric].samples == pytest.approx(part[metric].samples, rel=1e-3, abs=1e-6)
    assert not {"kl_weights_only", "kl_same_tokens"} & set(rows("none"))
    with pytest.raises(BadInput, match=r"--weights-only 'half': expected sample, full, none"):
        rows("half")


def test_a_file_of_another_model_has_none(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """The same vocabulary, so its divergence can be measured; its tensors mean nothing in the reference's
    model."""
    source, deeper = make_checkpoint(), make_checkpoint(num_hidden_layers=3)
    convert(deeper, "gguf-q4_0", tmp_path / "gguf", verify="none", run=RUN)
    file = shutil.copy(next((tmp_path / "gguf").glob("*.gguf")), tmp_path / "theirs.gguf")
    said: list[str] = []
    rows = evaluate([file], reference=source, tokens=300, protocol="llamacpp-32", run=RUN, say=said.append)
    assert {"kl_mean"} == {row.metric for row in rows} & {"kl_mean", "kl_weights_only", "kl_same_tokens"}
    assert any("no kl_weights_only" in line and "blk.2." in line for line in said)


@pytest.mark.parametrize(
    ("protocol", "tokens", "expected"),
    [
        ("llamacpp-512", 512 * 2, 2),
        ("llamacpp-512", 512 * 24, 2),
        ("llamacpp-512", 512 * 200, 3),
        ("llamacpp-512", 512 * 1600, 16),  # an eightieth is more than 4,096 tokens
        ("gptq-2048", 2048 * 140, 2),
    ],
)
def test_how_many_windows_and_which(protocol: str, tokens: int, expected: int) -> None:
    windows = make_windows(
        parse_protocol(protocol),
        "x",
        lambda text, add_special=True: list(range(tokens)),
        ids="source",
        prefix=None,
    )
    chosen = chosen_windows(windows, "sample")
    assert len(set(chosen.tolist())) == expected
    assert sorted(chosen) == list(chosen)
    count = len(windows.windows)
    # as far from the beginning as from the end
    assert abs(int(chosen[0]) - (count - 1 - int(chosen[-1]))) <= 1
    assert np.ptp(np.diff(chosen)) <= 1
    assert len(chosen_windows(windows, "full")) == count
