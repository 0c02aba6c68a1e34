"""Tokens that other files add to tokenizer.json: as transformers' own tokenizer of the same folder has
them."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import BadInput

PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
SIZE = 280


def entry(text: str, **flags: bool) -> dict[str, Any]:
    return {"content": text, **PLAIN, **flags}


#: file -> its content; the folder's tokenizer.json has ``SIZE`` tokens, ``<|endoftext|>`` of them added
FOLDERS: dict[str, dict[str, dict[str, Any]]] = {
    "decoder": {CONFIG: {"added_tokens_decoder": {"300": entry("<|im_start|>"), "301": entry("<|im_end|>")}}},
    "ids with holes": {CONFIG: {"added_tokens_decoder": {"500": entry("<b>"), "400": entry("<a>")}}},
    "flags": {
        CONFIG: {
            "added_tokens_decoder": {
                "300": entry("<left>", lstrip=True),
                "301": entry("<right>", rstrip=True),
                "302": entry("word", single_word=True, normalized=True, special=False),
            }
        }
    },
    "a token of the vocabulary": {CONFIG: {"added_tokens_decoder": {"7": entry("th", special=False)}}},
    "other flags of a known one": {
        CONFIG: {"added_tokens_decoder": {"0": entry("<|endoftext|>", lstrip=True)}}
    },
    "added_tokens.json": {ADDED: {"<|im_start|>": 300, "plain": 301}, CONFIG: {"eos_token": "<|im_start|>"}},
    "decoder goes before added_tokens.json": {
        ADDED: {"<x>": 300},
        CONFIG: {"added_tokens_decoder": {"300": entry("<y>")}},
    },
    "decoder goes before the map": {
        MAP: {"pad_token": "<x>"},
        CONFIG: {"added_tokens_decoder": {"300": entry("<y>")}},
    },
    "map": {
        MAP: {
            "pad_token": {
                "content": "[PAD]",
                "lstrip": True,
                "rstrip": False,
                "normalized": False,
                "single_word": False,
            },
            "eos_token": "</s>",
            "additional_special_tokens": ["<x>", "<y>"],
        }
    },
    "map over config": {CONFIG: {"eos_token": "<c>"}, MAP: {"eos_token": "<m>"}},
    "roles": {
        CONFIG: {
            "pad_token": "[PAD]",
            "bos_token": "<s>",
            "mask_token": "<m>",
            "additional_special_tokens": ["<r>", "<q>"],
        }
    },
    "extra with flags": {
        CONFIG: {"extra_special_tokens": ["<e>", {"__type": "AddedToken", **entry("<f>", special=False)}]}
    },
    "roles of their own": {
        CONFIG: {"extra_special_tokens": {"image_token": "<image>"}, "audio_token": "<audio>"}
    },
    "a role makes special": {
        CONFIG: {"eos_token": "<e>", "added_tokens_decoder": {"300": entry("<e>", special=False)}}
    },
    "null": {CONFIG: {"pad_token": None, "eos_token": "<|endoftext|>", "additional_special_tokens": None}},
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        initial_alphabet=alphabet,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        min_frequency=1,
    )
    tokenizer.train_from_iterator(
        ["the cat that sat there with them, this and other words of the kind " * 3] * 9, trainer
    )
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    tokenizer.save(str(path))
    assert tokenizer.get_vocab_size() == SIZE
    return path


def folder_with(vocabulary: Path, folder: Path, files: dict[str, dict[str, Any]]) -> Path:
    (folder / "tokenizer.json").write_bytes(vocabulary.read_bytes())
    for name, data in {CONFIG: {}, **files}.items():
        data = {"tokenizer_class": "PreTrainedTokenizerFast", **data} if name == CONFIG else data
        (folder / name).write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_as_transformers(name: str, vocabulary: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = folder_with(vocabulary, tmp_path, FOLDERS[name])
    source, theirs = SourceTokenizer.open(folder), AutoTokenizer.from_pretrained(folder)
    ours = {number: repr(token) for number, token in source.backend.get_added_tokens_decoder().items()}
    assert ours == {number: repr(token) for number, token in theirs.added_tokens_decoder.items()}
    texts = list(theirs.added_tokens_encoder)
    for text in [*texts, " ".join(texts), "a  ".join([*texts, "the password"]), "the cat<|im_start|> sat\n"]:
        assert source.encode(text, add_special=False) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    ("file", "data", "said"),
    [
        (CONFIG, {"added_tokens_decoder": [1]}, "expected an object of ids"),
        (CONFIG, {"added_tokens_decoder": {"x": entry("<a>")}}, "'x' is not a token id"),
        (CONFIG, {"added_tokens_decoder": {"-4": entry("<a>")}}, "'-4' is not a token id"),
        (CONFIG, {"added_tokens_decoder": {"300": {"special": True}}}, "expected a token"),
        (ADDED, {"<a>": None}, "'None' is not a token id"),
    ],
)
def test_what_is_no_token(
    file: str, data: dict[str, Any], said: str, vocabulary: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=said):
        SourceTokenizer.open(folder_with(vocabulary, tmp_path, {file: data}))
