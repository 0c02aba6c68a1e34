"""What the files beside tokenizer.json say of a GGUF file's vocabulary: end tokens, declared tokens, chat
templates."""

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from split_families import FAMILIES
from tokenizers import AddedToken, Tokenizer
from trained_tokenizer import train
from vocabulary_file import Vocabulary, open_folder, tokenizer_of, write_vocabulary

from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.gguf.container.reader import read_gguf
from quantize.gguf.tokenizer.chat_templates import templates_of
from quantize.gguf.tokenizer.metadata import tokenizer_metadata, verify_tokenizer
from quantize.gguf.tokenizer.special import ENDS
from quantize.gguf.tokenizer.verify import added_by_transformers

T = "tokenizer.ggml."


def chat_folder(folder: Path, names: list[str]) -> dict[str, int]:
    """A byte-level vocabulary with ``names`` as special tokens; text -> id."""
    train(folder, FAMILIES["Qwen2, Qwen3"], size=400)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer.save(str(folder / "tokenizer.json"))
    return {name: tokenizer.token_to_id(name) for name in names}


@pytest.mark.parametrize("listed_in", ["generation_config.json", "config.json", "text_config"])
@pytest.mark.parametrize(
    "ends",
    [
        ["<|endoftext|>", "<|user|>", "<|observation|>"],
        ["<|user|>", "<|endoftext|>"],
        ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
        ["<|im_end|>", "<|user|>", "<|endoftext|>", "<|observation|>"],
    ],
    ids=" ".join,
)
def test_every_end_token_ends_generation(ends: list[str], listed_in: str, tmp_path: Path) -> None:
    ids = chat_folder(tmp_path, sorted({*ends, "<|endoftext|>", "<|assistant|>"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": ends[0]}))
    listed = {"eos_token_id": [ids[name] for name in ends]}
    config: dict[str, Any] = {
        "generation_config.json": {},
        "config.json": listed,
        "text_config": {"text_config": listed},
    }[listed_in]
    if listed_in == "generation_config.json":
        (tmp_path / listed_in).write_text(json.dumps(listed))
    metadata = tokenizer_metadata(open_folder(tmp_path, **config))
    assert metadata.notes == []
    write_vocabulary(tmp_path / "v.gguf", metadata.kvs)
    vocabulary = Vocabulary(tmp_path / "v.gguf")
    assert [name for name in ends if not vocabulary.ends(ids[name])] == []
    assert not vocabulary.ends(ids["<|assistant|>"])
    vocabulary.close()


def test_an_end_token_that_there_is_no_room_for_is_noted(tmp_path: Path) -> None:
    names = ["<a>", "<b>", "<c>", "<d>"]
    ids = chat_folder(tmp_path, names)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<a>"}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": list(ids.values())}))
    (note,) = tokenizer_metadata(open_folder(tmp_path)).notes
    assert note.what == "tokenizer: <d> does not end generation in llama.cpp"


@pytest.mark.parametrize("text", sorted(ENDS))
def test_texts_that_end_generation_by_themselves(text: str, tmp_path: Path) -> None:
    ids = chat_folder(tmp_path, ["<s>", text])
    kvs = tokenizer_metadata(open_folder(tmp_path)).kvs
    other = {
        key: (ids["<s>"], value[1])
        for key, value in kvs.items()
        if key.endswith(("eos_token_id", "eot_token_id", "eom_token_id"))
    }
    write_vocabulary(tmp_path / "v.gguf", {**kvs, **other})
    vocabulary = Vocabulary(tmp_path / "v.gguf")
    assert vocabulary.ends(ids[text])
    vocabulary.close()


@pytest.mark.parametrize("file", ["tokenizer_config.json", "added_tokens.json"])
def test_tokens_that_other_files_declare_have_their_ids(file: str, tmp_path: Path) -> None:
    """And verification, which asks transformers, notices a file without them."""
    chat_folder(tmp_path, [])
    source = SourceTokenizer.open(tmp_path)
    size = source.vocab_size
    without = tokenizer_of(
        tmp_path / "without.gguf", tokenizer_metadata(open_folder(tmp_path, rows=size + 8)).kvs
    )
    names = ["<|im_start|>", "<|im_end|>"]
    flags = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    decoder = {str(size + i): {"content": name, **flags} for i, name in enumerate(names)}
    data = (
        {"added_tokens_decoder": decoder}
        if file != "added_tokens.json"
        else {name: size + i for i, name in enumerate(names)}
    )
    (tmp_path / file).write_text(json.dumps(data))
    checkpoint = open_folder(tmp_path, rows=size + 8)
    metadata = tokenizer_metadata(checkpoint)
    tokens, types = (metadata.kvs[T + key][0] for key in ("tokens", "token_type"))
    assert tokens[size : size + 3] == [*names, f"[PAD{size + 2}]"]
    assert types[size : size + 2] == [TokenType.CONTROL] * 2
    tokenize = tokenizer_of(tmp_path / "with.gguf", metadata.kvs)
    ids = tokenize("<|im_start|>user\nhi<|im_end|>\n")
    assert (ids[0], size + 1 in ids) == (size, True)
    assert verify_tokenizer(checkpoint, tokenize).fixable == []
    assert added_by_transformers(tmp_path) == (
        {"<|endoftext|>": source.id_of("<|endoftext|>"), **{n: size + i for i, n in enumerate(names)}},
        "",
    )
    missed = {mismatch.text for mismatch in verify_tokenizer(checkpoint, without, texts=["a"]).fixable}
    assert missed == set(names)


def test_a_tokenizer_that_transformers_cannot_read_is_said(tmp_path: Path) -> None:
    chat_folder(tmp_path, [])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"padding_side": "up"}))
    checkpoint = open_folder(tmp_path)
    report = verify_tokenizer(
        checkpoint, tokenizer_of(tmp_path / "v.gguf", tokenizer_metadata(checkpoint).kvs), texts=["a"]
    )
    assert "not compared with transformers' own reading: ValueError" in report.summary()


TEMPLATES: dict[str, dict[str, str]] = {
    "jinja": {"chat_template.jinja": "J"},
    "json": {"chat_template.json": json.dumps({"chat_template": "P"})},
    "config": {"tokenizer_config.json": json.dumps({"chat_template": "C"})},
    "config before json": {
        "tokenizer_config.json": '{"chat_template": "C"}',
        "chat_template.json": '{"chat_template": "P"}',
    },
    "jinja before config": {"chat_template.jinja": "J", "tokenizer_config.json": '{"chat_template": "C"}'},
    "named": {
        "tokenizer_config.json": json.dumps(
            {"chat_template": [{"name": n, "template": n} for n in ("rag-2", "default")]}
        ),
    },
    "named without default": {
        "tokenizer_config.json": json.dumps({"chat_template": [{"name": "rag", "template": "R"}]})
    },
    "files of their own": {"chat_template.jinja": "J", "additional_chat_templates/tool_use.jinja": "T"},
    "a file without default": {
        "additional_chat_templates/rag.jinja": "R",
        "tokenizer_config.json": '{"chat_template": "C"}',
    },
    "none": {},
}


@pytest.mark.parametrize("place", TEMPLATES)
def test_chat_templates_from_wherever_they_are(place: str, tmp_path: Path) -> None:
    """What is in the file is what transformers has, but for chat_template.json, which its processors read."""
    from transformers import AutoTokenizer

    chat_folder(tmp_path, [])
    (tmp_path / "additional_chat_templates").mkdir()
    for name, text in TEMPLATES[place].items():
        (tmp_path / name).write_text(text)
    metadata = tokenizer_metadata(open_folder(tmp_path))
    write_vocabulary(tmp_path / "v.gguf", metadata.kvs)
    found = templates_of(read_gguf(tmp_path / "v.gguf").kvs)
    theirs = AutoTokenizer.from_pretrained(tmp_path).chat_template or {}
    named = theirs if isinstance(theirs, dict) else {"default": theirs}
    assert found == (
        {"default": "P"}
        if place == "json"
        else {name.replace("-", "_"): text for name, text in named.items()}
    )
