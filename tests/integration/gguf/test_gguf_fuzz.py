"""Every field of a GGUF file set to what it must not be: turned into a checkpoint, opened. One line or a
result, never more.

A sample by default; everything by ``-m long``.
"""

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fuzzing import faults, sample
from gguf import GGUFValueType
from gguf_bytes import Document, changed, mixture, sentencepiece, tiny_gguf

from quantize.errors import BadInput
from quantize.recipe import RunOptions
from quantize.runtimes.llamacpp import LlamaCppRuntime
from quantize.sources.opening import open_checkpoint

pytest.importorskip("llama_cpp")
RUN = RunOptions(device="cpu", threads=1, progress=False)
CHILD_BYTES = 2 << 30
Documents = dict[str, Document]


@pytest.fixture(scope="module")
def documents(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Documents:
    plain = Document.read(
        tiny_gguf(tmp_path_factory.mktemp("tiny") / "out", make_checkpoint, num_hidden_layers=1)
    )
    return {"byte-level": plain, "pieces": sentencepiece(plain), "experts": mixture(plain)}


def inputs(documents: Documents) -> Iterator[tuple[str, bytes]]:
    for kind, document in documents.items():
        for label, data in changed(document):
            yield f"{kind}: {label}", data


def to_checkpoint(data: bytes, folder: Path) -> None:
    (folder / "f.gguf").write_bytes(data)
    checkpoint = open_checkpoint(folder / "f.gguf")
    for name in checkpoint.tensors:
        checkpoint.read(name)


def opened(data: bytes, folder: Path) -> None:
    (folder / "f.gguf").write_bytes(data)
    before = _most_bytes(resource.RUSAGE_CHILDREN)
    try:
        with LlamaCppRuntime(folder / "f.gguf", RUN) as runtime:
            ids = runtime.tokenize("the rain")
            runtime.detokenize(ids)
            runtime.logits(np.asarray([ids[:8] or [0]]), 0, lambda row, first, logits: None)
            runtime.generate([0], 2)
    finally:
        most = _most_bytes(resource.RUSAGE_CHILDREN)
        # a child is counted with what this process held when it began it, which late in a suite is much
        begun = _most_bytes(resource.RUSAGE_SELF)
        assert most <= max(before, begun + CHILD_BYTES), f"llama.cpp held {(most - begun) / 1e9:.1f} GB more"


def _most_bytes(whose: int) -> int:
    """Of the largest child so far, or of this process."""
    return resource.getrusage(whose).ru_maxrss * 1024


def test_the_files_themselves_are_good(documents: Documents, tmp_path: Path) -> None:
    for document in documents.values():
        to_checkpoint(document.to_bytes(), tmp_path)
        opened(document.to_bytes(), tmp_path)


@pytest.mark.parametrize(
    "count", [250, pytest.param(1 << 30, marks=[pytest.mark.long, pytest.mark.timeout(7200)])]
)
def test_to_a_checkpoint(documents: Documents, tmp_path: Path, count: int) -> None:
    found = faults(lambda data: to_checkpoint(data, tmp_path), sample(inputs(documents), count), seconds=60)
    assert not found, found


@pytest.mark.parametrize(
    "count", [8, pytest.param(1 << 30, marks=[pytest.mark.long, pytest.mark.timeout(7200)])]
)
def test_opened_in_llamacpp(documents: Documents, tmp_path: Path, count: int) -> None:
    found = faults(lambda data: opened(data, tmp_path), sample(inputs(documents), count), seconds=60)
    assert not found, found


def test_what_small_files_once_took_gigabytes_or_minutes_for(documents: Documents, tmp_path: Path) -> None:
    experts, pieces = documents["experts"], documents["pieces"]
    kind, element, tokens = pieces.kvs["tokenizer.ggml.tokens"]
    long = pieces.with_kv("tokenizer.ggml.tokens", (kind, element, [*tokens[:-1], "x" * 400_000]))
    kind, _, _ = experts.kvs["llama.expert_count"]
    many = experts.with_kv("llama.expert_count", (kind, None, 2**31))
    found = faults(
        lambda data: to_checkpoint(data, tmp_path),
        [("one long token", long.to_bytes()), ("experts", many.to_bytes())],
        seconds=10,
        memory_bytes=300 << 20,
    )
    assert not found, found


def test_a_number_that_no_float32_holds_is_refused(documents: Documents, tmp_path: Path) -> None:
    huge = (GGUFValueType.FLOAT64, None, 1e308)
    data = documents["byte-level"].with_kv("llama.attention.layer_norm_rms_epsilon", huge).to_bytes()
    with pytest.raises(BadInput, match=r"a float32 holds as llama.attention.layer_norm_rms_epsilon"):
        to_checkpoint(data, tmp_path)
