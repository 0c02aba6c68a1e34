"""Tokenizer files of strangers: bounded before a library sees them, its errors one line, and texts keep their
length."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.checkpoint.tokenizer_files import library, token_id
from quantize.errors import BadInput


@pytest.fixture
def folder(demo_checkpoint: Path, tmp_path: Path) -> Path:
    shutil.copy(demo_checkpoint / "tokenizer.json", tmp_path)
    return tmp_path


def change(folder: Path, **changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(data | changes))
    return data


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 2**31}, "merges": []}}, "token id 2147483648, and"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "'-1' is not a token id"),
        ({"model": {"type": "BPE", "vocab": {"a": "0"}, "merges": []}}, "not a token id"),
        ({"added_tokens": [{"id": 2**31, "content": "x"}]}, "token id 2147483648"),
        ({"added_tokens": [5]}, "added_tokens"),
        ({"model": None}, "no vocabulary"),
        ({"model": {"type": "Unigram", "vocab": [["a", 1e308]]}}, "not a token with its score"),
        ({"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 30}}, "grow more than"),
        ({"decoder": {"type": "Sequence", "decoders": [REPLACE] * 2}}, "grow more than"),
        ({"pre_tokenizer": {"type": "Nothing"}}, "not a tokenizer the tokenizers library can read"),
    ],
)
def test_what_is_refused(folder: Path, changes: dict[str, Any], says: str) -> None:
    change(folder, **changes)
    with pytest.raises(BadInput, match=says) as error:
        SourceTokenizer.open(folder).encode("a")
    assert "\n" not in str(error.value)


def test_a_training_script_s_truncation_and_padding_are_no_part_of_the_text(folder: Path) -> None:
    whole = SourceTokenizer.open(folder).encode("The river had risen in the night. " * 10)
    truncation = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 10**6},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
    }
    change(folder, truncation=truncation, padding=padding | {"pad_token": "<s>"})
    assert SourceTokenizer.open(folder).encode("The river had risen in the night. " * 10) == whole
    assert len(whole) > 8


def test_a_panic_of_a_library_is_one_line(folder: Path) -> None:
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
    with (
        pytest.raises(BadInput, match=r"tokenizer.json: fails \(index out of bounds here\)"),
        library(folder / "tokenizer.json", "fails"),
    ):
        raise panic("index out of bounds\nhere")
    with pytest.raises(KeyboardInterrupt), library(folder, "fails"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("number", [-1, 2**31, 1e308, float("inf"), True, None, [], "x", "1.5", 1.5])
def test_ids(number: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="token id"):
        token_id(tmp_path, number, 100)


def test_ids_as_people_have_them(tmp_path: Path) -> None:
    assert [token_id(tmp_path, number, 32_000) for number in (0, "32000", 32767.0, 128_255)] == [
        0,
        32000,
        32767,
        128_255,
    ]
