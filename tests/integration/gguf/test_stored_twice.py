"""Checkpoints that store more, or under other names, than their family usually does: heads that are also the
embedding, masks, names without their prefix. llama.cpp's logits are those of transformers on the same
folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from family_cases import CASES, Case, llamacpp_logits, make, write_gguf_f32
from safetensors.numpy import load_file, save_file

from quantize.errors import Unsupported
from quantize.gguf.families.plan import plan, restore
from quantize.sources.opening import open_checkpoint

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd little configs
BY_NAME = {case.name: case for case in CASES}
TIED = (
    "Gemma",
    "Gemma 2",
    "Gemma 3 (other pattern)",
    "Cohere Command-R",
    "Cohere Command-R7B",
    "Llama 3.2 (tied)",
    "Falcon 7B",
)
NO_HEAD = ("Gemma", "Gemma 2", "Cohere Command-R", "Cohere Command-R7B")


def with_head(case: Case, folder: Path, factor: float = 1.0) -> Path:
    """The case's tied checkpoint, its head stored too: the embedding times ``factor``."""
    make(case, folder)
    tensors = load_file(folder / "model.safetensors")
    embedding = next(
        array
        for name, array in tensors.items()
        if name.endswith(("embed_tokens.weight", "word_embeddings.weight"))
    )
    save_file(
        {**tensors, "lm_head.weight": embedding * np.float32(factor)},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


def difference(folder: Path, gguf: Path, length: int) -> float:
    """Largest difference of any logit between transformers on ``folder`` and llama.cpp on ``gguf``, over the
    logits' spread."""
    from transformers import AutoModelForCausalLM

    ids = np.random.default_rng(3).integers(1, 160, (1, length))
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    return float(np.abs(llamacpp_logits(gguf, ids) - expected).max() / expected.std())


@pytest.mark.parametrize("name", TIED)
def test_a_tied_head_that_is_stored_is_the_embedding(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    folder = with_head(case, tmp_path / "hf")
    assert "output.weight" not in write_gguf_f32(folder, tmp_path / "m.gguf")
    assert difference(folder, tmp_path / "m.gguf", case.length) < case.tolerance
    checkpoint = open_checkpoint(folder, tokenizer=False)
    family = plan(checkpoint)
    assert [note.tensor for note in family.notes] == ["lm_head.weight"]
    built = {
        m.name: m.build([checkpoint.read_float32(source) for source in m.sources]) for m in family.tensors
    }
    read_back = dict(restore(family.tensors, built.__getitem__))
    assert set(read_back) == set(checkpoint.tensors)
    assert np.array_equal(read_back["lm_head.weight"], checkpoint.read_float32("lm_head.weight"))


@pytest.mark.parametrize("name", ["Gemma 3 (other pattern)", "Llama 3.2 (tied)"])
def test_a_head_that_differs_counts_though_the_config_ties_it(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    folder = with_head(case, tmp_path / "hf", factor=-0.5)
    assert "output.weight" in write_gguf_f32(folder, tmp_path / "m.gguf")
    assert difference(folder, tmp_path / "m.gguf", case.length) < case.tolerance
    assert "config says that it is tied" in plan(open_checkpoint(folder, tokenizer=False)).notes[0].what


@pytest.mark.parametrize("name", NO_HEAD)
def test_a_head_that_differs_is_refused_where_llamacpp_has_none(name: str, tmp_path: Path) -> None:
    folder = with_head(BY_NAME[name], tmp_path / "hf", factor=-0.5)
    with pytest.raises(
        Unsupported, match=r"lm_head\.weight is not model\.embed_tokens\.weight.*no separate head"
    ):
        plan(open_checkpoint(folder, tokenizer=False))


@pytest.mark.parametrize(
    "case", [c for c in CASES if not c.rewrite and c.vision is None], ids=lambda case: case.name
)
def test_names_without_their_prefix(case: Case, tmp_path: Path) -> None:
    """As a base model saves itself (Qwen3-Embedding and others do)."""
    _, folder = make(case, tmp_path / "hf")
    named = plan(open_checkpoint(folder, tokenizer=False))
    tensors = load_file(folder / "model.safetensors")
    short = {name.split(".", 1)[1] if name.startswith(("model.", "transformer.",
    "gpt_neox.", "backbone.")) else name: array
             for name, array in tensors.items()}  # fmt: skip
    assert short.keys() != tensors.keys()
    save_file(short, folder / "model.safetensors", {"format": "pt"})
    unnamed = plan(open_checkpoint(folder, tokenizer=False))
    assert unnamed.kvs == named.kvs
    assert {m.name: m.shape for m in unnamed.tensors} == {m.name: m.shape for m in named.tensors}


@pytest.mark.parametrize("kind", [np.uint8, np.bool_, np.float32])
def test_stored_masks_are_left_alone(kind: type, tmp_path: Path) -> None:
    case = BY_NAME["GPT-NeoX (Pythia)"]
    _, folder = make(case, tmp_path / "hf")
    weights = open_checkpoint(folder, tokenizer=False).parameters
    tensors = load_file(folder / "model.safetensors")
    for layer in range(2):
        attention = f"gpt_neox.layers.{layer}.attention"
        tensors |= {
            f"{attention}.bias": np.tril(np.ones((1, 1, 128, 128), kind)),
            f"{attention}.masked_bias": np.array(-1e9, np.float32),
            f"{attention}.rotary_emb.inv_freq": np.ones(2, np.float32),
        }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write_gguf_f32(folder, tmp_path / "m.gguf")
    assert difference(folder, tmp_path / "m.gguf", case.length) < case.tolerance
    assert open_checkpoint(folder, tokenizer=False).parameters == weights
