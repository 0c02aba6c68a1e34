"""Every field of a config, a tokenizer's files and a header changed, one at a time: refused in one line, or
converted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzzing import HOSTILE, damaged, faults, mutations, sample

from quantize.errors import QuantwrightError

SMALL = {
    "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": None,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path) -> dict[str, Path]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    made = {}
    for kind, own in MODELS.items():
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(kind)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | own)).to(torch.bfloat16)
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(demo_checkpoint / name, folder / name)
        made[kind] = folder
    return made


def copy_with(source: Path, folder: Path, **files: Any) -> Path:
    """A folder with links to the source's files, except those given, whose content is given (as JSON)."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    for name, content in files.items():
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def check_all(folder: Path) -> None:
    from jobs.commands.check import _check_model

    _check_model(str(folder), None, False)


def convert_to_gguf(folder: Path) -> None:
    from quantize.conversion import convert

    convert(folder, "gguf-q4_k_m", folder.parent / "out", verify="none", force=True)


def warmed(action: Callable[[Path], None], folder: Path) -> None:
    """Import here what the children need, once."""
    action(folder)


def tell_and_build(folder: Path) -> None:
    """What is told of a model without transformers is what transformers makes of it; what it refuses is not
    told."""
    from quantize.hf.names import _built_layers, find_layers
    from quantize.hf.plain_decoders import parameters
    from quantize.sources.opening import open_checkpoint

    checkpoint = open_checkpoint(folder)
    if parameters(checkpoint.config) is None:
        return
    told = find_layers(checkpoint)
    try:
        assert told == _built_layers(checkpoint)
    except QuantwrightError as error:
        raise AssertionError(str(error)) from error


ACTIONS = {"check": check_all, "gguf": convert_to_gguf, "told": tell_and_build}


def changed_configs(folder: Path, action: str) -> list[tuple[str, Any]]:
    config = json.loads((folder / "config.json").read_text())
    if action != "told":  # fields that older and other models have
        config |= {
            "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
        }
        config |= {
            "quantization_config": None,
            "sliding_window_pattern": 6,
            "num_local_experts": None,
            "head_dim": 16,
        }
    return list(mutations(config, HOSTILE))


def try_configs(models: dict[str, Path], kind: str, action: str, tmp_path: Path, count: int | None) -> None:
    source, act = models[kind], ACTIONS[action]
    inputs = changed_configs(source, action)
    warmed(act, copy_with(source, tmp_path / "model"))
    found = faults(
        lambda config: act(copy_with(source, tmp_path / "model", **{"config.json": config})),
        inputs if count is None else sample(inputs, count),
        seconds=60,
    )
    assert found == [], "\n".join(map(str, found))


@pytest.mark.parametrize(
    ("kind", "action"), [("llama", "check"), ("qwen2_moe", "gguf"), ("gemma3_text", "told")]
)
def test_configs(models: dict[str, Path], kind: str, action: str, tmp_path: Path) -> None:
    try_configs(models, kind, action, tmp_path, 30)


@pytest.mark.long
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_configs_all(models: dict[str, Path], kind: str, action: str, tmp_path: Path) -> None:
    try_configs(models, kind, action, tmp_path, None)


TEXT = "The river had risen in the night, and by morning the lower fields were under water. " * 20
ROWS = 400


@pytest.fixture(scope="module")
def texts(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a small Llama with tokenizer.json of BPE and of unigram, and with a SentencePiece model."""
    import sentencepiece
    import torch
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
    from tokenizers import models as kinds
    from transformers import LlamaConfig, LlamaForCausalLM

    base = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(LlamaConfig(**SMALL | {"vocab_size": ROWS})).to(torch.bfloat16).save_pretrained(base)
    special = ["<s>", "</s>", "<unk>"]
    bpe = Tokenizer(kinds.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=ROWS, special_tokens=special))
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    bpe.enable_truncation(8)
    bpe.enable_padding(length=16)
    unigram = Tokenizer(kinds.Unigram())
    unigram.normalizer = normalizers.Sequence([normalizers.Replace(Regex(" {2,}"), " "), normalizers.NFKC()])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    unigram.train_from_iterator(
        [TEXT], trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>")
    )
    piece = base / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT]),
        model_prefix=str(piece),
        vocab_size=60,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    folders = {}
    for kind, tokenizer in (("bpe", bpe), ("unigram", unigram), ("sentencepiece", None)):
        folders[kind] = tmp_path_factory.mktemp(kind)
        shutil.copytree(base, folders[kind], dirs_exist_ok=True, ignore=shutil.ignore_patterns("tokenizer.*"))
        if tokenizer:
            tokenizer.save(str(folders[kind] / "tokenizer.json"))
        else:
            shutil.copy(base / "tokenizer.model", folders[kind])
        for name, content in COMPANIONS.items():
            (folders[kind] / name).write_text(json.dumps(content))
    return folders


COMPANIONS: dict[str, Any] = {
    "tokenizer_config.json": {
        "bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {"390": {"content": "<|extra|>", "special": True}},
        "model_max_length": 10**30,
        "tokenizer_class": "LlamaTokenizer", "chat_template": "{{ messages }}",
        "extra_special_tokens": {"a": "<s>"},
    },
    "special_tokens_map.json": {"bos_token": {"content": "<s>"}, "additional_special_tokens": ["</s>"]},
    "added_tokens.json": {"<|extra|>": 390},
    "generation_config.json": {"eos_token_id": [1, 2], "temperature": 0.7, "do_sample": True},
}  # fmt: skip
#: what no mutation of one value makes
RAW = (
    b"[" * 3000,
    b'{"a": "\\ud800"}',
    b"\xff\xfe",
    b"",
    b"{}",
    b"[]",
    b"null",
    b'{"a": ' * 500 + b"1" + b"}" * 500,
)


def tokenize(folder: Path) -> None:
    from quantize.checkpoint.tokenizer import SourceTokenizer

    source = SourceTokenizer.open(folder)
    ids = source.encode("The river 1234 <s> \u00e9\U0001f600  end")
    source.decode([*ids, 0, 399])
    assert source.vocab_size < 10**6
    assert source.bos_id is None or source.bos_id >= 0
    convert_to_gguf(folder)


def changed_tokenizers(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    inputs: list[tuple[str, dict[str, Any]]] = []
    for path in sorted(folder.glob("*.json")):
        if path.name == "config.json":
            continue
        inputs += [
            (f"{path.name}: {label}", {path.name: new})
            for label, new in mutations(json.loads(path.read_text()))
        ]
        inputs += [(f"{path.name}: {raw[:20]!r}", {path.name: raw}) for raw in RAW]
    if (folder / "tokenizer.model").is_file():
        raw = (folder / "tokenizer.model").read_bytes()
        inputs += [(f"tokenizer.model {label}", {"tokenizer.model": new}) for label, new in damaged(raw, 200)]
    return inputs


def try_tokenizers(source: Path, tmp_path: Path, count: int | None) -> None:
    inputs = changed_tokenizers(source)
    warmed(tokenize, copy_with(source, tmp_path / "model"))
    found = faults(
        lambda files: tokenize(copy_with(source, tmp_path / "model", **files)),
        inputs if count is None else sample(inputs, count),
        seconds=30,
    )
    assert found == [], "\n".join(map(str, found))


@pytest.mark.parametrize("kind", ["bpe", "unigram", "sentencepiece"])
def test_tokenizers(texts: dict[str, Path], kind: str, tmp_path: Path) -> None:
    try_tokenizers(texts[kind], tmp_path, 40)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["bpe", "unigram", "sentencepiece"])
def test_tokenizers_all(texts: dict[str, Path], kind: str, tmp_path: Path) -> None:
    try_tokenizers(texts[kind], tmp_path, None)
