"""``quantwright verify`` with real runtimes: good files agree, damaged ones do not, and a runtime that ends,
hangs or is not there costs one line."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fresh import Fresh
from gguf import GGUFValueType as V
from gguf_bytes import Document
from spoiled import Arrays, spoil

from quantize import convert
from quantize.commands.verify import verify
from quantize.errors import BadInput, Unsupported
from quantize.inspection.against_source import SPLITS
from quantize.kernels.block_types import Type
from quantize.recipe import RunOptions
from quantize.verification.across_runtimes import verify_anywhere
from quantize.verification.report import Ran, Report

RUN = RunOptions(device="cpu", threads=1, progress=False)
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 10000.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def start() -> Iterator[Fresh]:
    """One server for all: what a process has imported it would import anyway."""
    pytest.importorskip("gptqmodel")
    with Fresh("accelerate", "gptqmodel", "optimum.gptq") as server:
        yield server


@pytest.fixture(scope="module")
def source(make_checkpoint: Callable[..., Path]) -> Path:
    """Its rope is scaled; its weights are large, so that positions matter."""
    return make_checkpoint(num_hidden_layers=1, rope_parameters=LLAMA3, initializer_range=0.1)


@pytest.fixture(scope="module")
def gguf(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("llama_cpp")
    made = convert(source, "gguf-q8_0", tmp_path_factory.mktemp("gguf") / "out", verify="none", run=RUN)
    assert made.gguf is not None
    return made.gguf


@pytest.fixture(scope="module")
def gptq(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gptq") / "out"
    return convert(source, "rtn-int4:group_size=32", folder, verify="none", run=RUN).folder


def by_name(report: Report) -> dict[str, Ran]:
    return {ran.name: ran for ran in report.runtimes}


def wrong(report: Report) -> dict[str, str]:
    return {problem.what: problem.why for problem in report.problems if problem.level == "wrong"}


def test_a_folder_in_two_runtimes(source: Path, gptq: Path, start: Fresh) -> None:
    report = verify_anywhere(str(gptq), str(source), ["transformers", "gptqmodel"], RUN, start=start)
    assert not report.wrong, report
    assert report.problems == []
    for ran in report.runtimes:
        assert (ran.status, ran.why) == ("agrees", "")
        assert ran.kl is not None
        assert 0 < ran.kl <= (ran.tolerance or 0)
        assert (ran.top1 or 0) > 0.9
        # what four bits cost is seen by the source, and is no fault
        assert 0.01 < (ran.kl_source or 0) < 1
        assert len(ran.ids) == 24
        assert ran.text
    (between,) = report.between
    assert (between.first, between.second) == ("transformers", "gptqmodel")
    assert between.kl < 0.01
    assert report.kl_recipe == pytest.approx(by_name(report)["transformers"].kl_source, rel=0.1)


def test_without_a_source(gptq: Path, start: Fresh) -> None:
    report = verify_anywhere(str(gptq), None, None, RUN, start=start)
    assert not report.wrong, report
    statuses = {name: ran.status for name, ran in by_name(report).items()}
    assert statuses["transformers"] == statuses["gptqmodel"] == "agrees"
    assert statuses["llama.cpp"] == "skipped"
    assert by_name(report)["llama.cpp"].why == "it opens GGUF files"
    assert report.kl_recipe is None


def test_numbers_that_a_runtime_reads_otherwise(
    source: Path, gptq: Path, start: Fresh, tmp_path: Path
) -> None:
    """Of one group the scale is garbage large: whoever computes with it gets something that is no model."""

    def change(arrays: Arrays) -> None:
        arrays["model.layers.0.mlp.down_proj.scales"][0] = np.inf

    bad = spoil(gptq, tmp_path / "bad", change)
    report = verify_anywhere(str(bad), str(source), ["transformers"], RUN, start=start)
    assert report.wrong
    assert wrong(report)["uninitialised scales"].startswith("model.layers.0.mlp.down_proj.weight: scales has")
    assert by_name(report)["transformers"].status == "differs"
    assert "NaN or Inf" in by_name(report)["transformers"].why


def test_a_gguf_by_the_command(source: Path, gguf: Path) -> None:
    """A process is started as a person's command starts it."""
    done = CliRunner().invoke(
        verify, [str(gguf), "--source", str(source), "--threads", "1", "--json"], standalone_mode=False
    )
    assert done.exception is None, done.exception
    assert done.return_value == 0, done.stdout
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["agree"] is True
    found = {ran["name"]: ran for ran in document["runtimes"]}
    assert found["llama.cpp"]["status"] == "agrees"
    assert found["llama.cpp"]["kl"] < 1e-3
    assert found["vllm"]["status"] == "skipped"
    assert re.search(r"^llama\.cpp +agrees", done.stdout, re.MULTILINE)
    assert "verify: all agree" in done.stdout


def test_a_runtime_that_computes_something_else(source: Path, gguf: Path, start: Fresh) -> None:
    """transformers' own reader of GGUF passes over the factors of rope that Llama 3 stores as a tensor."""
    report = verify_anywhere(str(gguf), str(source), ["transformers", "llama.cpp"], RUN, start=start)
    found = by_name(report)
    assert found["llama.cpp"].status == "agrees"
    assert found["transformers"].status == "differs"
    assert found["transformers"].why == "its logits are not those of the weights as the format documents them"
    assert (found["transformers"].kl or 0) > 10 * (found["llama.cpp"].kl or 0)
    assert report.between[0].kl > 1e-3
    assert report.wrong
    assert wrong(report) == {}


def test_a_tokenizer_that_splits_otherwise_in_llama_cpp(
    source: Path, gguf: Path, start: Fresh, tmp_path: Path
) -> None:
    """Two words of the vocabulary changed places; another pre-tokenizer is named."""
    document = Document.read(gguf)
    tokens = list(document.kvs["tokenizer.ggml.tokens"][2])
    tokens[300], tokens[301] = tokens[301], tokens[300]
    for name, key, value in (
        ("order", "tokenizer.ggml.tokens", (V.ARRAY, V.STRING, tokens)),
        ("pre", "tokenizer.ggml.pre", (V.STRING, None, "gpt-2")),
    ):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(document.with_kv(key, value).to_bytes())
        report = verify_anywhere(str(path), str(source), ["llama.cpp"], RUN, start=start)
        assert set(wrong(report)) == {SPLITS}
        said = [problem.why for problem in report.problems if problem.what == SPLITS]
        assert said[-1].startswith("in llama.cpp ")
        assert ("which is 301 in its source (and 1 more)" in said[0]) == (name == "order")
        assert by_name(report)["llama.cpp"].status == "agrees"  # the same ids go in


def test_a_runtime_that_ends_or_hangs(source: Path, gguf: Path, start: Fresh, tmp_path: Path) -> None:
    path, document = tmp_path / "bad.gguf", Document.read(gguf)
    index = next(i for i, tensor in enumerate(document.tensors) if tensor.name == "output_norm.weight")
    size = document.tensors[index].shape[-1] // 32 * 34
    path.write_bytes(document.with_tensor(index, kind=int(Type.Q8_0), data=b"\1" * size).to_bytes())
    report = verify_anywhere(str(path), None, ["llama.cpp"], RUN, start=start)
    ran = by_name(report)["llama.cpp"]
    assert ran.status == "failed"
    assert "llama.cpp ended with signal 6 (SIGABRT)" in ran.why
    assert report.wrong
    slow = verify_anywhere(str(gguf), str(source), ["llama.cpp"], RUN, seconds=0.2)
    assert by_name(slow)["llama.cpp"].why == "the process that opened it did not end within 0.2 s"
    assert slow.wrong


def test_what_cannot_be_verified(source: Path, gguf: Path, gptq: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no such runtime; known: transformers, gptqmodel, llama\.cpp, vllm"):
        verify_anywhere(str(gguf), None, ["ollama"], RUN)
    with pytest.raises(BadInput, match="not a Hub id"):
        verify_anywhere(str(tmp_path / "none"), None, None, RUN)
    with pytest.raises(Unsupported, match=r"none of --in llama.cpp runs here \(llama.cpp: it opens GGUF"):
        verify_anywhere(str(gptq), str(source), ["llama.cpp"], RUN)
    with pytest.raises(Unsupported, match="nothing here can open it"):
        verify_anywhere(str(gptq), None, ["llama.cpp"], RUN)
    odd = Path(shutil.copytree(source, tmp_path / "odd"))
    config = json.loads((odd / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "someones"}
    (odd / "config.json").write_text(json.dumps(config))
    report = verify_anywhere(str(odd), str(source), ["llama.cpp", "transformers"], RUN, seconds=0.1)
    assert "not quantized" in wrong(report)
    assert "packed as someones are not read here" in report.why_not
