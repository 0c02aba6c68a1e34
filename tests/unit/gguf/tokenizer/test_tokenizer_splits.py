"""Every pre-tokenizer of llama.cpp: recognised from a family's own split, and its ids those of a vocabulary
trained with it."""

import json
import unicodedata
from pathlib import Path

import pytest
from split_families import FAMILIES, Family
from trained_tokenizer import train
from vocabulary_file import open_folder, tokenizer_of

from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import BadInput, Unsupported
from quantize.gguf.tokenizer.metadata import check_tokenizer, tokenizer_metadata, verify_tokenizer
from quantize.gguf.tokenizer.pre import _marked
from quantize.gguf.tokenizer.pretokenizers import BY_NAME, PRES, SPLITS

LIMITS = {"normalization", "its split code", "token types that llama.cpp overrides"}


@pytest.mark.parametrize("name", FAMILIES)
def test_family_is_recognised_and_its_ids_are_the_sources_or_llamacpps_limit(
    name: str, tmp_path: Path
) -> None:
    family = FAMILIES[name]
    train(tmp_path, family)
    checkpoint = open_folder(tmp_path)
    metadata = tokenizer_metadata(checkpoint)
    assert BY_NAME[metadata.kvs["tokenizer.ggml.pre"][0]] is BY_NAME[family.pre]
    report = verify_tokenizer(checkpoint, tokenizer_of(tmp_path / "v.gguf", metadata.kvs))
    assert report.compared > 300
    assert report.fixable == []
    assert {cause for mismatch in report.mismatches for cause in mismatch.cause.split(", ")} <= LIMITS
    # A normalizer changes the few texts that are not in composed form; llama.cpp's split code departs on a
    # few more.
    assert len(report.mismatches) <= 20


def test_every_split_has_a_family_or_a_reason() -> None:
    covered = {BY_NAME[family.pre].split for family in FAMILIES.values()}
    # gpt-4o and bailingmoe: another name does the same better or alike; default: what no file asks for;
    # lines: raw BPE, below.
    assert set(SPLITS) - covered == {"gpt-4o", "bailingmoe", "default", "lines", "words"}
    assert {pre.split for pre in PRES} <= set(SPLITS)


def test_wrong_pre_tokenizer_is_a_fault_with_the_name_that_mends_it(tmp_path: Path) -> None:
    train(tmp_path, FAMILIES["Qwen2, Qwen3"])
    checkpoint = open_folder(tmp_path)
    metadata = tokenizer_metadata(checkpoint, pre="gpt-2")
    assert metadata.kvs["tokenizer.ggml.pre"][0] == "gpt-2"
    tokenize = tokenizer_of(tmp_path / "v.gguf", metadata.kvs)
    for report in (
        verify_tokenizer(checkpoint, tokenize, pre="gpt-2"),
        verify_tokenizer(checkpoint, tokenize),
    ):
        assert len(report.fixable) > 20
    assert "qwen2" in verify_tokenizer(checkpoint, tokenize, pre="gpt-2").fixable[0].cause


def test_unknown_split_is_refused_with_the_option_and_the_names(tmp_path: Path) -> None:
    vowels = {"type": "Split", "pattern": {"Regex": "[aeiou]"}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False, "trim_offsets": True}
    family = Family("gpt-2", [vowels, to_bytes])
    train(tmp_path, family)
    with pytest.raises(Unsupported, match=r"--pre-tokenizer NAME, of: .*qwen2"):
        check_tokenizer(open_folder(tmp_path))
    check_tokenizer(open_folder(tmp_path), pre="gpt-2")
    with pytest.raises(BadInput, match=r"not a name llama\.cpp knows"):
        check_tokenizer(open_folder(tmp_path), pre="qwen-two")


def test_tokens_that_no_merge_reaches_keep_the_flag_before_the_split(tmp_path: Path) -> None:
    """GPT-4o's split is followed better by a pre-tokenizer that takes whole words: not for a vocabulary where
    that matters."""
    train(tmp_path, FAMILIES["GPT-4o, Llama 4"])
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["vocab"]["Hello"] = len(data["model"]["vocab"])
    data["model"]["merges"] = [m for m in data["model"]["merges"] if "".join(m) != "Hello"]
    path.write_text(json.dumps(data))
    assert tokenizer_metadata(open_folder(tmp_path)).kvs["tokenizer.ggml.pre"][0] == "gpt-4o"


def test_a_name_that_older_builds_refuse_is_written_only_where_it_matters(
    demo_checkpoint: Path, tmp_path: Path
) -> None:
    """The two split letters and combining marks otherwise: no matter to a vocabulary that joins none, and
    told of another."""
    family = FAMILIES["GPT-4o, Llama 4"]
    train(tmp_path, family)
    told = tokenizer_metadata(open_folder(tmp_path))
    assert told.kvs["tokenizer.ggml.pre"][0] == "granite-embed-multi-97m"
    (note,) = (note for note in told.notes if "older builds refuse" in note.what)
    assert "--pre-tokenizer gpt-4o" in note.why
    data = json.loads((demo_checkpoint / "tokenizer.json").read_text())
    data["pre_tokenizer"] = json.loads((tmp_path / "tokenizer.json").read_text())["pre_tokenizer"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    checkpoint = open_folder(tmp_path)
    metadata = tokenizer_metadata(checkpoint)
    assert metadata.kvs["tokenizer.ggml.pre"][0] == "gpt-4o"
    assert [note for note in metadata.notes if "older builds" in note.what] == []
    report = verify_tokenizer(checkpoint, tokenizer_of(tmp_path / "v.gguf", metadata.kvs))
    assert report.fixable == []
    assert not [mismatch for mismatch in report.mismatches if "split" in mismatch.cause]


def test_tokens_with_combining_marks_are_probes(tmp_path: Path) -> None:
    train(tmp_path, FAMILIES["GPT-4o, Llama 4"])
    marked = _marked(SourceTokenizer.open(tmp_path))
    assert marked
    assert all(any(unicodedata.category(letter).startswith("M") for letter in text[1:]) for text in marked)
