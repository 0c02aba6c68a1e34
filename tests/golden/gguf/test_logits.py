"""The lossless file in llama.cpp against transformers in float32, so that no mistake shared by writer and
reader can hide."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantize.errors import BadInput
from quantize.methods.gguf import Gguf
from quantize.methods.gguf_recipe import GgufRecipe
from quantize.recipe import RunOptions
from quantize.runtimes.llamacpp import LlamaCppRuntime
from quantize.runtimes.opening import open_runtime

from .test_identity import convert

RUN = RunOptions(threads=1, progress=False)
# Relative to the spread of the logits. F32: only the order of additions differs. llama.cpp multiplies F16 and
# BF16 weights by activations rounded to the same type.
TOLERANCE = {"f32": 1e-5, "f16": 3e-3, "bf16": 2e-2}


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 4096, (5, 100))


@pytest.fixture(scope="module")
def reference(checkpoint: Path, rows: np.ndarray) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits: np.ndarray = model(torch.from_numpy(rows)).logits.numpy()
    return logits


def run(runtime: LlamaCppRuntime, rows: np.ndarray, first: int) -> np.ndarray:
    out = np.full((len(rows), rows.shape[1] - first, runtime.vocabulary), np.nan, np.float32)

    def keep(row: int, position: int, logits: np.ndarray) -> None:
        out[row, position - first : position - first + len(logits)] = logits

    runtime.logits(rows, first, keep)
    return out


@pytest.mark.parametrize("kind", TOLERANCE)
def test_logits_equal_transformers(
    checkpoint: Path, rows: np.ndarray, reference: np.ndarray, tmp_path: Path, kind: str
) -> None:
    file = convert(checkpoint, tmp_path, type=kind)
    with open_runtime(file, RUN, exact=True) as runtime:
        assert isinstance(runtime, LlamaCppRuntime)
        difference = np.abs(run(runtime, rows, 0) - reference).max() / reference.std()
        streamed = [
            runtime.start(rows[0, :50].tolist()),
            *(runtime.step(int(token)) for token in rows[0, 50:60]),
        ]
    assert difference < TOLERANCE[kind]
    assert np.abs(np.array(streamed) - reference[0, 49:60]).max() / reference.std() < TOLERANCE[kind]


def test_pieces_and_groups_change_nothing(
    checkpoint: Path, rows: np.ndarray, reference: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget of a few positions a call cuts every row into pieces; a large one runs rows together."""
    from quantize.runtimes import llamacpp

    file = convert(checkpoint, tmp_path, type="f32")
    monkeypatch.setattr(llamacpp, "LOGITS_BYTES", 4 * 4096 * 30)
    with LlamaCppRuntime(file, RUN, exact=True) as runtime:
        got = run(runtime, rows[:2], 37)
    assert np.abs(got - reference[:2, 37:]).max() / reference.std() < TOLERANCE["f32"]
    monkeypatch.setattr(llamacpp, "LOGITS_BYTES", 4 * 4096 * 130)
    with LlamaCppRuntime(file, RUN, exact=True) as runtime:
        got = run(runtime, rows, 37)  # two rows a call, one left over
    assert np.abs(got - reference[:, 37:]).max() / reference.std() < TOLERANCE["f32"]


def test_bad_rows_and_files(checkpoint: Path, tmp_path: Path) -> None:
    file = convert(checkpoint, tmp_path, type="f32")
    with LlamaCppRuntime(file, RUN) as runtime:
        assert runtime.context == 256
        with pytest.raises(BadInput, match="outside the model's vocabulary"):
            run(runtime, np.array([[5000]]), 0)
        with pytest.raises(BadInput, match="context of 256"):
            run(runtime, np.ones((1, 300), np.int64), 0)
        assert {"revision", "cpu_features", "threads"} <= runtime.describe().keys()
    data = file.read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(data.replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"))
    with pytest.raises(BadInput, match=r"llama\.cpp refuses this file: .*attn_q"):
        LlamaCppRuntime(broken, RUN)
    broken.write_bytes(data[:-1000])
    with pytest.raises(BadInput, match="truncated"):
        LlamaCppRuntime(broken, RUN)


def test_dequantized_by_the_second_reader(checkpoint: Path, tmp_path: Path) -> None:
    from quantize.sources.opening import open_checkpoint

    opened = open_checkpoint(checkpoint)
    for name, most in (("f32", 0.0), ("q8_0", 0.01), ("q4_k_m", 0.12)):
        recipe = GgufRecipe(type=name)
        convert(checkpoint, tmp_path / name, type=name)
        seen = {}
        for tensor, values in Gguf().plan(opened, recipe).read(tmp_path / name):
            source = opened.read_float32(tensor)
            assert values.shape == source.shape
            seen[tensor] = np.abs(values - source).max() / np.abs(source).max()
        assert seen.keys() == opened.tensors.keys()
        assert max(seen.values()) <= most
        assert (max(seen.values()) > 0) == (most > 0)
