"""llama.cpp in a process of its own: the same numbers, and its death is one line about one file."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType as V
from gguf_bytes import Document, tiny_gguf

from quantize.errors import StepFailed
from quantize.kernels.block_types import Type
from quantize.recipe import RunOptions
from quantize.runtimes.llamacpp import LlamaCppRuntime
from quantize.runtimes.llamacpp_apart import Model
from quantize.runtimes.opening import open_runtime

pytest.importorskip("llama_cpp")
RUN = RunOptions(device="cpu", threads=1, progress=False)


@pytest.fixture(scope="module")
def good(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("tiny") / "out", make_checkpoint)


@pytest.fixture
def bad(good: Path, tmp_path: Path) -> Iterator[Path]:
    """A file that the reader takes and llama.cpp ends over: its graph multiplies by norms in F32 alone."""
    path, document = tmp_path / "bad.gguf", Document.read(good)
    index = next(i for i, tensor in enumerate(document.tensors) if tensor.name == "output_norm.weight")
    path.write_bytes(document.with_tensor(index, kind=int(Type.Q8_0), data=b"\0" * 34).to_bytes())
    return path


def everything(path: Path, own_process: bool) -> list[object]:
    found: list[object] = []
    rows = np.arange(60).reshape(3, 20)
    with open_runtime(path, RUN, own_process=own_process) as runtime:
        runtime.logits(rows, 5, lambda row, first, logits: found.append((row, first, logits.tolist())))
        groups = [[[1, 2, 3], [1, 2, 4, 5]], [[7, 8]]]
        runtime.tree_logits(groups, [[1, 1], [0]], lambda *at: found.append((*at[:3], at[3].tolist())))
        found += [runtime.start([1, 2]).tolist(), runtime.step(3).tolist(), runtime.start_rows(rows).tolist()]
        found += [
            runtime.step_rows(rows[:, 0]).tolist(),
            runtime.tokenize("the rain"),
            runtime.detokenize([40, 41]),
        ]
        runtime.tune("eager")
        runtime.logits(rows, 19, lambda row, first, logits: found.append(logits.tolist()))
        return [*found, runtime.describe(), runtime.vocabulary, runtime.context]


def test_the_same_bits_as_in_process(good: Path) -> None:
    assert everything(good, own_process=True) == everything(good, own_process=False)


def test_its_death_is_one_line_that_names_the_file(bad: Path) -> None:
    runtime = LlamaCppRuntime(bad, RUN)
    with pytest.raises(StepFailed) as failed:
        runtime.logits(np.ones((1, 4), np.int64), 0, lambda row, first, logits: None)
    runtime.close()
    said = str(failed.value)
    assert re.fullmatch(
        r"llama\.cpp ended with signal 6 \(SIGABRT\) while running .*bad\.gguf: .*unsupported types.*", said
    )
    assert str(bad) in said


def test_killed_from_outside(good: Path) -> None:
    with LlamaCppRuntime(good, RUN) as runtime:
        assert isinstance(runtime.model, Model)
        os.kill(runtime.model._process.pid, signal.SIGKILL)
        with pytest.raises(
            StepFailed, match=r"signal 9 \(SIGKILL\) while tokenizing with .*ran out of memory, or someone"
        ):
            runtime.tokenize("rain")


def test_it_ends_with_the_runtime(good: Path) -> None:
    with LlamaCppRuntime(good, RUN) as runtime:
        assert isinstance(runtime.model, Model)
        child = runtime.model._process
        assert child.poll() is None
    assert child.poll() is not None


def test_eval_measures_the_others(bad: Path, good: Path, tmp_path: Path) -> None:
    from evals.measure import measure, raise_failure
    from evals.options import EvalOptions

    text = tmp_path / "text.txt"
    text.write_text("the rain in the hills and the road to the river " * 40)
    outcome = measure(
        [bad, good], EvalOptions.of(text=text, protocol="gptq-32"), RUN, tmp_path / "run", lambda line: None
    )
    assert {row.artifact for row in outcome.results} == {str(good)}
    with pytest.raises(StepFailed, match=r"bad\.gguf: llama\.cpp ended with signal 6"):
        raise_failure(outcome)
    statuses = [
        json.loads(path.read_text())["subject"]["status"]
        for path in (tmp_path / "run" / "results").glob("*.json")
    ]
    assert sorted(statuses) == ["failed", "ok"]


def test_a_conversion_that_it_ends_over(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """transformers' Llama has no experts; of a GGUF that says it has some, llama.cpp asserts that it uses
    some."""
    from quantize import convert

    source = shutil.copytree(make_checkpoint(num_hidden_layers=1), tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "num_local_experts": 8}))
    try:
        said = f"opens: {convert(source, 'gguf-f32', tmp_path / 'out', run=RUN).verified}"
    except StepFailed as error:
        said = str(error)
    assert re.search(r"opens: (full|.*llama\.cpp (ended|expects).*)$", said)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 0), ("block_count", 2**32 - 1), ("expert_count", 8), ("expert_count", 2**31),
        ("attention.layer_norm_rms_epsilon", float("nan")), ("attention.layer_norm_rms_epsilon", -1.0),
    ],
)  # fmt: skip
def test_what_it_asserts_is_said_before(good: Path, tmp_path: Path, key: str, value: float) -> None:
    kind = V.FLOAT32 if isinstance(value, float) else V.UINT32
    (tmp_path / "f.gguf").write_bytes(
        Document.read(good).with_kv(f"llama.{key}", (kind, None, value)).to_bytes()
    )
    with pytest.raises(
        StepFailed, match=r"llama\.(block_count|expert_.*|attention.*) is .*; llama\.cpp expects"
    ):
        LlamaCppRuntime(tmp_path / "f.gguf", RUN)
