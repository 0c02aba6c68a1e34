"""GGUF back to a checkpoint: weights, config and tokenizer come back as they went in."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from family_cases import CASES, TIGHT, Case, as_llamacpp, make, write_gguf_f32
from gguf import TokenType
from lazily import same_tensors

from quantize import convert
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.materialised import materialised
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import BadInput, Unsupported
from quantize.gguf.container.reader import GgufFile, read_gguf
from quantize.gguf.families.plan import plan
from quantize.gguf.to_checkpoint.config import ARCHITECTURES, to_config
from quantize.gguf.to_checkpoint.tokenizer import write_tokenizer
from quantize.sources.opening import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")
SCALING = "Llama 3 (rope scaling, GQA)"
# what comes back has the names that transformers writes
OTHER_NAMES = ("Mixtral (fused experts)", "Llama without a head")
BACK = [
    case
    for case in CASES
    if case.gguf_architecture in ARCHITECTURES
    and "27B" not in case.name
    and case.name != SCALING
    and case.vision is None
    and "multipliers" not in case.name  # which are in the weights
    and case.name not in OTHER_NAMES
    and "longrope" not in case.name
]
TEXTS = (
    "Hello world", " two  spaces   and\ttabs\n\n", "def f(x):\n    return x ** 2  # it's 12345",
    "中文字符测试，你好。", "emoji 😀👍🏽 ok",
    "naïve café über Straße", "Привет, мир! HTTPServer camelCase", "", "   ", "a", "1 22 333 4444 don't I'LL",
)  # fmt: skip


@pytest.mark.parametrize("case", BACK, ids=[case.name for case in BACK])
def test_weights_and_config_come_back(case: Case, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, folder = make(case, tmp_path / "hf")
    write_gguf_f32(folder, tmp_path / "model.gguf")
    source, got = open_checkpoint(folder, tokenizer=False), open_checkpoint(tmp_path / "model.gguf")
    assert set(got.tensors) == set(source.tensors)
    moved = {name for m in plan(source).tensors if m.pure for name in m.sources}
    for name in source.tensors:
        a, b = got.read_float32(name), source.read_float32(name)
        # what is computed rounds, as 1 + w - 1 does; what only moves comes back bit for bit
        assert np.array_equal(a, b) if name in moved else np.abs(a - b).max() < 5e-7, name
        entry = got.entries(name)
        assert entry is not None or b.ndim < 3 or ".experts." not in name, name
        assert entry is None or np.array_equal(np.stack([*map(entry, range(len(a)))]), got.read(name)), name
    ids = torch.from_numpy(np.random.default_rng(3).integers(1, 160, (1, 40)))
    with materialised(got, tmp_path) as back:
        same_tensors(open_checkpoint(back), got)
        reloaded = AutoModelForCausalLM.from_pretrained(
            back, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    if case.model_type == "gemma3n_text":
        as_llamacpp(reloaded)
    with torch.no_grad():
        bound = 1e-5 if moved == set(source.tensors) else TIGHT  # what rounds shows in the logits
        assert (reloaded(ids).logits - model(ids).logits).abs().max() < bound


def test_llama3_scaling_is_read_off_the_divisors(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 500000.0,
    }  # fmt: skip
    settings = {"rope_parameters": scaling, "max_position_embeddings": 131072, "head_dim": 64}
    _, folder = make(Case("llama3", "llama", settings), tmp_path / "hf")
    write_gguf_f32(folder, tmp_path / "model.gguf")
    config = open_checkpoint(tmp_path / "model.gguf").config
    assert {**config["rope_scaling"], "rope_theta": config["rope_theta"]} == scaling
    # and one that nobody published is refused, not guessed
    file = read_gguf(tmp_path / "model.gguf")
    odd = next(case for case in CASES if case.name == SCALING)
    _, folder = make(odd, tmp_path / "odd")
    write_gguf_f32(folder, tmp_path / "odd.gguf")
    with pytest.raises(Unsupported, match=r"rope_freqs\.weight is not the llama3 scaling"):
        open_checkpoint(tmp_path / "odd.gguf")
    assert file.tensors


def test_half_precision_stays_as_it_is(tmp_path: Path) -> None:
    """F16 and BF16 tensors come back with their bits; blocks come back as float32."""
    from quantize.gguf.container.writer import Planned, write_gguf
    from quantize.kernels.block_types import Type

    _, folder = make(CASES[0], tmp_path / "hf")
    write_gguf_f32(folder, tmp_path / "f32.gguf")
    file = read_gguf(tmp_path / "f32.gguf")
    kinds = {
        "blk.0.attn_q.weight": Type.BF16,
        "blk.0.ffn_up.weight": Type.F16,
        "blk.1.ffn_up.weight": Type.Q8_0,
    }
    planned = [
        Planned(
            name,
            tensor.shape,
            kinds.get(name, Type.F32),
            lambda name=name, tensor=tensor: file.dequantize(name).reshape(-1, tensor.shape[-1]),
            lambda: None,
        )
        for name, tensor in file.tensors.items()
    ]
    write_gguf(
        tmp_path / "mixed.gguf",
        {key: (value, file.kv_types[key][0]) for key, value in file.kvs.items()},
        planned,
        threads=1,
    )
    mixed = read_gguf(tmp_path / "mixed.gguf")
    got = open_checkpoint(tmp_path / "mixed.gguf")
    layer = "model.layers.{}.mlp.up_proj.weight".format
    assert got.tensors["model.layers.0.self_attn.q_proj.weight"].dtype == "BF16"
    assert got.tensors[layer(0)].dtype == "F16"
    assert got.tensors[layer(1)].dtype == "F32"
    assert np.array_equal(
        got.read(layer(0)), open_checkpoint(folder, tokenizer=False).read_float32(layer(0)).astype(np.float16)
    )
    assert np.array_equal(got.read_float32(layer(1)), mixed.dequantize("blk.1.ffn_up.weight"))


def test_refusals(tmp_path: Path) -> None:
    def file(**kvs: object) -> GgufFile:
        return GgufFile(
            tmp_path / "x.gguf", 3, {key.replace("__", "."): value for key, value in kvs.items()}, {}, {}
        )

    with pytest.raises(Unsupported, match=r"'rwkv7' cannot be read back.*llama.*gemma3"):
        to_config(file(general__architecture="rwkv7"))
    with pytest.raises(BadInput, match="token_embd"):
        to_config(file(general__architecture="llama"))
    with pytest.raises(Unsupported, match="kind 't5'"):
        write_tokenizer(file(tokenizer__ggml__model="t5", tokenizer__ggml__tokens=["a"]), tmp_path)
    with pytest.raises(Unsupported, match="pre-tokenizer 'nobody-knows'"):
        write_tokenizer(
            file(
                tokenizer__ggml__model="gpt2",
                tokenizer__ggml__pre="nobody-knows",
                tokenizer__ggml__tokens=["a"],
                tokenizer__ggml__merges=[],
            ),
            tmp_path,
        )
    types = [int(TokenType.UNKNOWN), int(TokenType.NORMAL)]
    with pytest.raises(BadInput, match="a duplicate"):
        write_tokenizer(
            file(
                tokenizer__ggml__model="llama",
                tokenizer__ggml__tokens=["a", "a"],
                tokenizer__ggml__token_type=types,
            ),
            tmp_path,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["llama2", "llama3", "qwen3", "mistral_v1", "mistral_v3", "deepseek_v3"])
def test_real_tokenizers_come_back(name: str, shared: Path, tmp_path: Path) -> None:
    """The same ids, specials included, from the files written as from the published ones."""
    from quantize.gguf.tokenizer.metadata import tokenizer_metadata

    folder = shared / "tokenizers" / name
    metadata = tokenizer_metadata(Checkpoint(folder, name, None, {"architectures": ["LlamaForCausalLM"]}, {}))
    kvs = {key: value for key, (value, _) in metadata.kvs.items()}
    write_tokenizer(
        GgufFile(tmp_path / "x.gguf", 3, {"general.architecture": "llama", **kvs}, {}, {}), tmp_path
    )
    theirs, ours = SourceTokenizer.open(folder), SourceTokenizer.open(tmp_path)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
    # Without special tokens: behind <s>, SentencePiece drops the space it put before a word, tokenizer.json's
    # decoder does not.
    plain = theirs.encode(TEXTS[5], add_special=False)
    assert ours.decode(plain) == theirs.decode(plain) == TEXTS[5]
    again = tokenizer_metadata(Checkpoint(tmp_path, name, None, {"architectures": ["LlamaForCausalLM"]}, {}))
    same = (
        "model",
        "tokens",
        "token_type",
        "scores",
        "add_bos_token",
        "add_eos_token",
        "add_space_prefix",
        "bos_token_id",
        "eos_token_id",
    )
    for key in (f"tokenizer.ggml.{key}" for key in same):
        assert again.kvs.get(key) == metadata.kvs.get(key), key


def test_what_the_card_says_comes_back(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Licence, tags and origin survive HF -> GGUF -> GGUF: the second file's ``general.*`` is the first's but
    for its type."""
    folder = make_checkpoint()
    front = {
        "license": "other", "license_name": "gemma", "license_link": "https://example.org/terms",
        "tags": ["ä", "b: c"],
        "language": ["en", "de"], "base_model": ["some-org/Some-Model-1B"],
        "model_name": "A Name: with a colon",
    }  # fmt: skip
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n\n# Card\n", encoding="utf-8")
    convert(str(folder), "gguf-f32", tmp_path / "first", verify="none")
    (first,) = (tmp_path / "first").glob("*.gguf")
    convert(str(first), "gguf-f16", tmp_path / "second", verify="none")
    (second,) = (tmp_path / "second").glob("*.gguf")
    a, b = (
        {k: v for k, v in read_gguf(p).kvs.items() if k.startswith("general.") and k != "general.file_type"}
        for p in (first, second)
    )
    assert a == b
    assert a["general.license.name"] == "gemma"
    assert a["general.base_model.0.repo_url"] == "https://huggingface.co/some-org/Some-Model-1B"
    assert json.loads((tmp_path / "second" / "manifest.json").read_text())["source"]["license"] == "other"
