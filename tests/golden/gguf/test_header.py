"""Metadata of a quantized file against what llama.cpp's quantizer writes from our lossless one; the record of
what differs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.peers.gguf_header import ADR, differences, listed
from benchmarks.peers.llama_quantize import quantize_file
from quantize.gguf.container.reader import read_gguf
from quantize.kernels.block_types import FILE_TYPES

from .test_identity import QUANTIZED, convert


@pytest.fixture(scope="module")
def source(make_checkpoint: Callable[..., Path]) -> Path:
    folder = make_checkpoint(hidden_size=64, intermediate_size=64, num_hidden_layers=1, vocab_size=512)
    card = (
        "---\nlicense: apache-2.0\nbase_model: org/Base-7B\nlanguage: [en, de]\ntags: [a, b]\ndatasets: "
        "[org/data]\n---\n"
    )
    (folder / "README.md").write_text(card)
    return folder


def test_only_the_signature_differs_from_llama_quantize(source: Path, tmp_path: Path) -> None:
    lossless = convert(source, tmp_path / "bf16", type="bf16")
    for name in QUANTIZED:
        ours = read_gguf(convert(source, tmp_path / name, type=name))
        quantize_file(lossless, tmp_path / f"{name}.gguf", FILE_TYPES[name].value, threads=1)
        theirs = read_gguf(tmp_path / f"{name}.gguf")
        assert differences(theirs, ours).keys() == {"general.quantized_by"}
        assert [key for key in ours.kvs if key != "general.quantized_by"] == list(theirs.kvs), "the order too"


def test_of_the_imatrix_only_the_folder_differs(source: Path, tmp_path: Path) -> None:
    import numpy as np

    from quantize.gguf.importance.file import Entry, ImportanceMatrix, write_imatrix

    matrix, lossless = tmp_path / "matrix.gguf", convert(source, tmp_path / "bf16", type="bf16")
    values = np.ones((1, 64), np.float32)
    write_imatrix(
        matrix,
        ImportanceMatrix({"blk.0.attn_q.weight": Entry(values, np.array([1]))}, ("some/text.txt",), 3, 512),
    )
    ours = read_gguf(convert(source, tmp_path / "ours", type="q4_0", imatrix=str(matrix), quantized_by=None))
    kvs: dict[str, str | int] = {
        "quantize.imatrix.file": str(matrix),
        "quantize.imatrix.dataset": "some/text.txt",
    }
    kvs |= {"quantize.imatrix.entries_count": 1, "quantize.imatrix.chunks_count": 3}
    importance = {"blk.0.attn_q.weight": values[0]}
    quantize_file(lossless, tmp_path / "t.gguf", FILE_TYPES["q4_0"].value, importance=importance, kvs=kvs)
    theirs = read_gguf(tmp_path / "t.gguf")
    assert differences(theirs, ours).keys() == {"quantize.imatrix.file"}
    assert ours.kvs["quantize.imatrix.file"] == "matrix.gguf"


def test_the_record_lists_what_may_differ() -> None:
    keys = listed()
    assert {
        "general.quantized_by",
        "quantize.imatrix.file",
        "tokenizer.ggml.scores",
        "tokenizer.ggml.fim_sep_token_id",
    } <= keys
    assert all(key.split(".")[0] in ("general", "tokenizer", "quantize") for key in keys), ADR
