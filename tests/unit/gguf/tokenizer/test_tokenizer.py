"""The tokenizer's metadata: kinds of vocabulary, flags, special tokens, templates; and its ids in
llama.cpp."""

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from split_families import FAMILIES
from tokenizers import AddedToken, Regex, Tokenizer
from trained_tokenizer import train
from vocabulary_file import open_folder, tokenizer_of

from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import BadInput, Unsupported
from quantize.gguf.tokenizer.awkward_texts import TEXTS
from quantize.gguf.tokenizer.metadata import check_tokenizer, tokenizer_metadata, verify_tokenizer

CORPUS = [text for text in TEXTS if text.strip() and "\x00" not in text] * 3
T = "tokenizer.ggml."
WORDS = '{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}'


def values(folder: Path, **options: Any) -> dict[str, Any]:
    return {key: value for key, (value, _) in tokenizer_metadata(open_folder(folder, **options)).kvs.items()}


def train_sentencepiece(folder: Path, **options: Any) -> None:
    from sentencepiece import SentencePieceTrainer

    settings = {"model_type": "bpe", "vocab_size": 900, "byte_fallback": True, "character_coverage": 0.98,
    "minloglevel": 2,
                "hard_vocab_limit": False, "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False,
                "num_threads": 1, "max_sentence_length": 9999}  # fmt: skip
    folder.joinpath("corpus").write_text("\n".join(CORPUS))
    prefix = str(folder / "tokenizer")
    SentencePieceTrainer.train(input=str(folder / "corpus"), model_prefix=prefix, **{**settings, **options})


def sentencepiece_style_json(folder: Path, *, prepend: bool, keep_model: bool = False) -> None:
    """The tokenizer.json that transformers 5 saves for a SentencePiece BPE: all cuts of a token are merges,
    in order of score."""
    from sentencepiece import SentencePieceProcessor

    train_sentencepiece(folder, user_defined_symbols=["<tool>"] if keep_model else ["▁▁▁", "<tool>"])
    model = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    vocab = {model.id_to_piece(number): number for number in range(model.vocab_size())}
    merges = []
    for text in sorted(vocab, key=lambda t: -model.get_score(vocab[t])):
        cuts = [
            (text[:at], text[at:]) for at in range(1, len(text)) if text[:at] in vocab and text[at:] in vocab
        ]
        if not model.is_control(vocab[text]) and not model.is_byte(vocab[text]):
            merges += sorted(cuts, key=lambda cut: (vocab[cut[0]], vocab[cut[1]]))
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    rules = [{"type": "Prepend", "prepend": "▁"}] * prepend + [replace]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    definition = {
        "version": "1.0",
        "added_tokens": [
            {"id": vocab[text], "content": text, **special, "special": text != "<tool>"}
            for text in ("<unk>", "<s>", "</s>", "<tool>")
        ],
        "normalizer": {"type": "Sequence", "normalizers": rules},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": merges,
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }
    folder.joinpath("tokenizer.json").write_text(json.dumps(definition))
    if not keep_model:
        folder.joinpath("tokenizer.model").unlink()


@pytest.mark.parametrize("prepend", [True, False])
def test_tokenizer_json_alone_gets_scores_from_merges_and_flags_from_its_normalizer(
    tmp_path: Path, prepend: bool
) -> None:
    sentencepiece_style_json(tmp_path, prepend=prepend)
    kvs = values(tmp_path)
    assert kvs[T + "model"] == "llama"
    assert kvs[T + "add_space_prefix"] is prepend
    assert kvs[T + "add_bos_token"] is True
    types = dict(zip(kvs[T + "tokens"], kvs[T + "token_type"], strict=True))
    assert [types[t] for t in ("<unk>", "<s>", "<tool>", "<0x41>")] == [
        TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.BYTE,
    ]  # fmt: skip
    checkpoint = open_folder(tmp_path)
    report = verify_tokenizer(
        checkpoint, tokenizer_of(tmp_path / "v.gguf", tokenizer_metadata(checkpoint).kvs)
    )
    assert report.mismatches == []


def test_space_at_the_start_only_is_counted_where_llamacpp_puts_more(tmp_path: Path) -> None:
    sentencepiece_style_json(tmp_path, prepend=True)
    path = tmp_path / "tokenizer.json"
    definition = json.loads(path.read_text())
    definition["normalizer"] = None
    definition["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }
    path.write_text(json.dumps(definition))
    checkpoint = open_folder(tmp_path)
    metadata = tokenizer_metadata(checkpoint)
    assert metadata.kvs[T + "add_space_prefix"][0] is True
    report = verify_tokenizer(checkpoint, tokenizer_of(tmp_path / "v.gguf", metadata.kvs))
    assert report.fixable == [], report.summary()
    assert {mismatch.cause for mismatch in report.mismatches} <= {
        "how added tokens are found and what follows them", "spaces at the start", "▁ in the text itself",
    }  # fmt: skip
    assert "how added tokens are found and what follows them" in report.summary()


def test_unigram_tokenizer_json(tmp_path: Path) -> None:
    from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    checkpoint = open_folder(tmp_path)
    metadata = tokenizer_metadata(checkpoint)
    kvs = {key.removeprefix(T): value for key, (value, _) in metadata.kvs.items()}
    assert (kvs["model"], kvs["add_eos_token"], kvs["unknown_token_id"]) == ("t5", True, 2)
    assert (kvs["add_space_prefix"], kvs["remove_extra_whitespaces"]) == (True, True)
    report = verify_tokenizer(checkpoint, tokenizer_of(tmp_path / "v.gguf", metadata.kvs))
    assert report.fixable == [], report.summary()
    assert len(report.mismatches) < 60, report.summary()


def test_scores_and_flags_gone_wrong_are_faults(tmp_path: Path) -> None:
    sentencepiece_style_json(tmp_path, prepend=True)
    checkpoint = open_folder(tmp_path)
    kvs = tokenizer_metadata(checkpoint).kvs
    scores, kind = kvs[T + "scores"]
    for key, value in (
        ("scores", [-1000.0] * len(scores)),
        ("add_space_prefix", False),
        ("add_bos_token", False),
    ):
        broken = {**kvs, T + key: (value, kvs[T + key][1])}
        report = verify_tokenizer(checkpoint, tokenizer_of(tmp_path / "v.gguf", broken))
        assert len(report.fixable) > 20, key
    assert "add_bos_token" in report.fixable[0].cause
    broken = {**kvs, T + "token_type": ([TokenType.NORMAL] * len(scores), kind)}
    assert verify_tokenizer(checkpoint, tokenizer_of(tmp_path / "v.gguf", broken)).fixable


def test_merges_that_scores_cannot_express_are_written_as_merges_over_raw_text(tmp_path: Path) -> None:
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer.from_str(
        json.dumps(
            {
                "version": "1.0",
                "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                "pre_tokenizer": {
                    "type": "Split",
                    "pattern": {"Regex": "\\n+"},
                    "behavior": "Isolated",
                    "invert": False,
                },
                "model": {"type": "BPE", "vocab": {}, "merges": [], "byte_fallback": True},
            }
        )
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", *bytes_], limit_alphabet=150, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = data["added_tokens"][:1]
    tmp_path.joinpath("tokenizer.json").write_text(json.dumps(data))
    checkpoint = open_folder(tmp_path)
    metadata = tokenizer_metadata(checkpoint)
    assert metadata.kvs[T + "model"][0] == "gpt2"
    assert metadata.kvs[T + "pre"][0] == "sarvam-moe"
    report = verify_tokenizer(checkpoint, tokenizer_of(tmp_path / "v.gguf", metadata.kvs))
    assert report.fixable == []
    assert len(report.mismatches) <= 3


@pytest.mark.parametrize(
    ("options", "differing"),
    [
        ({}, 0),
        ({"add_dummy_prefix": False}, 0),
        ({"user_defined_symbols": ["<tool>", "▁▁▁"], "add_dummy_prefix": False}, 0),
        ({"remove_extra_whitespaces": True, "normalization_rule_name": "nmt_nfkc"}, 160),
        ({"model_type": "unigram", "byte_fallback": False}, 20),
        (
            {"model_type": "unigram", "byte_fallback": False, "normalization_rule_name": "nmt_nfkc",
             "remove_extra_whitespaces": True},
            12,
        ),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)  # fmt: skip
def test_sentencepiece_model(tmp_path: Path, options: dict[str, Any], differing: int) -> None:
    train_sentencepiece(tmp_path, **options)
    checkpoint = open_folder(tmp_path)
    metadata = tokenizer_metadata(checkpoint)
    assert metadata.kvs[T + "model"][0] == ("t5" if options.get("model_type") == "unigram" else "llama")
    report = verify_tokenizer(checkpoint, tokenizer_of(tmp_path / "v.gguf", metadata.kvs))
    assert report.fixable == [], report.summary()
    assert len(report.mismatches) <= differing, report.summary()


def test_added_tokens_of_a_sentencepiece_folder(tmp_path: Path) -> None:
    train_sentencepiece(tmp_path)
    size = SourceTokenizer.open(tmp_path).backend.vocab_size()
    config = {
        "added_tokens_decoder": {
            str(size): {"content": "<extra>", "special": False},
            str(size + 2): {"content": "<|end|>", "special": False},
        },
        "add_bos_token": False,
    }
    tmp_path.joinpath("tokenizer_config.json").write_text(json.dumps(config))
    source = SourceTokenizer.open(tmp_path)
    assert source.encode("<s>a<extra>") == [1, *source.encode("a", add_special=False), size]
    assert source.decode(source.encode("a<extra>b")) == "a<extra>b"
    kvs = values(tmp_path, rows=size + 5)
    assert len(kvs[T + "tokens"]) == len(kvs[T + "scores"]) == len(kvs[T + "token_type"]) == size + 5
    # the next free id, as transformers has it, whatever the file says
    assert kvs[T + "tokens"][size:] == [
        "<extra>",
        "<|end|>",
        *(f"[PAD{number}]" for number in range(size + 2, size + 5)),
    ]
    unused = TokenType.UNUSED
    assert kvs[T + "token_type"][size:] == [TokenType.USER_DEFINED, TokenType.CONTROL, unused, unused, unused]
    checkpoint = open_folder(tmp_path, rows=size + 5)
    report = verify_tokenizer(
        checkpoint, tokenizer_of(tmp_path / "v.gguf", tokenizer_metadata(checkpoint).kvs)
    )
    assert report.mismatches == []


def test_model_beside_tokenizer_json_gives_its_scores_and_the_json_its_added_tokens(tmp_path: Path) -> None:
    sentencepiece_style_json(tmp_path, prepend=True, keep_model=True)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|user|>"])
    tokenizer.add_tokens([AddedToken("<more>", normalized=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    kvs = values(tmp_path)
    assert kvs[T + "tokens"][size - 2 :] == ["<|user|>", "<more>"]
    assert kvs[T + "token_type"][size - 2 :] == [TokenType.CONTROL, TokenType.USER_DEFINED]
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert kvs[T + "scores"][: size - 2] == [pieces.get_score(number) for number in range(size - 2)]
    checkpoint = open_folder(tmp_path)
    report = verify_tokenizer(
        checkpoint, tokenizer_of(tmp_path / "v.gguf", tokenizer_metadata(checkpoint).kvs)
    )
    assert report.mismatches == []


def test_special_ids_flags_and_templates(tmp_path: Path) -> None:
    train(tmp_path, FAMILIES["Qwen2, Qwen3"], size=500)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    names = [
        "<|im_end|>",
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        "<|fim_pad|>",
        "<|repo_name|>",
        "<|file_sep|>",
        "<s>",
    ]
    tokenizer.add_special_tokens(names)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    ids = {name: tokenizer.token_to_id(name) for name in [*names, "<think>", "<|endoftext|>"]}
    tokenizer.post_processor = None
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    templates = [
        {"name": "tool_use", "template": "T"},
        {"name": "default", "template": "D"},
        {"name": "rag-2", "template": "R"},
    ]
    config = {
        "eos_token": "<|im_end|>",
        "pad_token": {"content": "<|endoftext|>"},
        "add_bos_token": True,
        "chat_template": templates,
    }
    tmp_path.joinpath("tokenizer_config.json").write_text(json.dumps(config))
    metadata = tokenizer_metadata(open_folder(tmp_path, rows=600, bos_token_id=ids["<s>"], eos_token_id=0))
    kvs = {key.removeprefix(T): value for key, (value, _) in metadata.kvs.items()}
    assert {key: kvs[key] for key in kvs if key.endswith("_id")} == {
        "bos_token_id": ids["<s>"], "eos_token_id": ids["<|im_end|>"],
        "padding_token_id": ids["<|endoftext|>"],
        "eot_token_id": ids["<|im_end|>"], "fim_pre_token_id": ids["<|fim_prefix|>"],
        "fim_suf_token_id": ids["<|fim_suffix|>"],
        "fim_mid_token_id": ids["<|fim_middle|>"], "fim_pad_token_id": ids["<|fim_pad|>"],
        "fim_rep_token_id": ids["<|repo_name|>"],
        "fim_sep_token_id": ids["<|file_sep|>"],
    }  # fmt: skip
    # The file's post-processor adds nothing, whatever tokenizer_config.json says; and that is said.
    assert kvs["add_bos_token"] is False
    assert any("add_bos_token" in note.what for note in metadata.notes)
    assert kvs["token_type"][ids["<think>"]] == TokenType.USER_DEFINED
    assert kvs["tokenizer.chat_template"] == "D"
    assert kvs["tokenizer.chat_templates"] == ["tool_use", "rag_2"]
    assert (kvs["tokenizer.chat_template.tool_use"], kvs["tokenizer.chat_template.rag_2"]) == ("T", "R")
    (tmp_path / "chat_template.jinja").write_text("J")
    assert values(tmp_path)["tokenizer.chat_template"] == "J"


def test_post_processor_decides_what_is_added(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    train(tmp_path, FAMILIES["Llama 3"], size=400)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_special_tokens(["<a>", "<b>", "<c>"])
    ids = [tokenizer.token_to_id(name) for name in ("<a>", "<b>", "<c>")]
    pairs = list(zip(("<a>", "<b>", "<c>"), ids, strict=True))
    tokenizer.post_processor = TemplateProcessing(single="<b> $A <c>", special_tokens=pairs)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tmp_path.joinpath("tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<a>", "eos_token": "<c>"})
    )
    metadata = tokenizer_metadata(open_folder(tmp_path))
    kvs = {key.removeprefix(T): value for key, (value, _) in metadata.kvs.items()}
    assert (kvs["bos_token_id"], kvs["add_bos_token"], kvs["eos_token_id"], kvs["add_eos_token"]) == (
        ids[1],
        True,
        ids[2],
        True,
    )
    assert any("instead of <a>" in note.what for note in metadata.notes)
    assert (
        verify_tokenizer(open_folder(tmp_path), tokenizer_of(tmp_path / "v.gguf", metadata.kvs)).mismatches
        == []
    )
    tokenizer.post_processor = TemplateProcessing(single="<a> <b> $A", special_tokens=pairs)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    metadata = tokenizer_metadata(open_folder(tmp_path))
    assert metadata.kvs[T + "add_bos_token"][0] is False
    report = verify_tokenizer(open_folder(tmp_path), tokenizer_of(tmp_path / "v.gguf", metadata.kvs))
    assert report.fixable == []
    assert {mismatch.cause for mismatch in report.mismatches if not mismatch.fixable} == {
        "more than one token added around a text"
    }


def test_vocabulary_larger_than_the_embedding_is_cut_out_loud(tmp_path: Path) -> None:
    train(tmp_path, FAMILIES["GPT-2"], size=400)
    metadata = tokenizer_metadata(open_folder(tmp_path, rows=398))
    assert len(metadata.kvs[T + "tokens"][0]) == 398
    assert any("2 tokens left out" in note.what for note in metadata.notes)


def test_vocab_json_with_merges_txt(tmp_path: Path) -> None:
    train(tmp_path, FAMILIES["Qwen2, Qwen3"], size=600)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(data["model"]["vocab"]))
    (tmp_path / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in data["model"]["merges"])
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    before = SourceTokenizer.open(tmp_path).encode("Hello 123 wörld's\n")
    (tmp_path / "tokenizer.json").unlink()
    assert SourceTokenizer.open(tmp_path).encode("Hello 123 wörld's\n") == before
    kvs = values(tmp_path)
    assert (kvs[T + "model"], kvs[T + "pre"]) == ("gpt2", "qwen2")


@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("tokenizer.json", "{}", BadInput, "not a tokenizer"),
        ("tokenizer.json", WORDS, Unsupported, "WordLevel"),
        ("tokenizer.model", "nonsense", BadInput, "not a SentencePiece model"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, name: str, content: str, error: type[Exception], says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=says):
        check_tokenizer(open_folder(tmp_path))


@pytest.mark.parametrize("name", ["llama2", "llama3", "qwen3", "deepseek_v3", "mistral_v1", "mistral_v3"])
@pytest.mark.long
def test_published_vocabularies_on_awkward_texts(shared: Path, tmp_path: Path, name: str) -> None:
    checkpoint = open_folder(shared / "tokenizers" / name)
    report = verify_tokenizer(
        checkpoint, tokenizer_of(tmp_path / "v.gguf", tokenizer_metadata(checkpoint).kvs)
    )
    assert report.fixable == []
    assert len(report.mismatches) == (10 if name == "qwen3" else 0)


def test_real_sentencepiece_model_that_collapses_spaces(shared: Path, tmp_path: Path) -> None:
    from quantize.sources.opening import open_checkpoint

    checkpoint = open_checkpoint(shared / "models" / "tiny1m-hf")
    report = verify_tokenizer(
        checkpoint, tokenizer_of(tmp_path / "v.gguf", tokenizer_metadata(checkpoint).kvs)
    )
    assert report.fixable == []
    assert "stripping or collapsing of spaces" in {
        mismatch.cause for mismatch in report.mismatches if not mismatch.fixable
    }
