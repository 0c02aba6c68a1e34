"""Checkpoints that hold more than a loaded model takes from them, or the same under older names."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from decoder_cases import make_decoder

from quantize import Artifact, convert
from quantize.artifact.artifact import Note
from quantize.checkpoint.tensors import Entry, StoredTensors, write_folder
from quantize.recipe import CalibrationOptions

CALIBRATION = CalibrationOptions(source="stdlib", tokens=1024, sequence_length=128)
RECIPES = ("gptq-int4", "awq-int4", "quanto-int4", "bnb-nf4")


def add(folder: Path, **tensors: object) -> None:
    from safetensors.torch import load_file, save_file

    state = {**load_file(folder / "model.safetensors"), **tensors}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def made(source: Path, recipe: str, out: Path) -> tuple[Artifact, set[str], dict[str, Note]]:
    artifact = convert(source, recipe, out / recipe, calibration=CALIBRATION)
    assert artifact.verified == "full"
    return (
        artifact,
        set(StoredTensors(artifact.folder)),
        {note.tensor: note for note in artifact.manifest.notes},
    )


@pytest.fixture(scope="module")
def tied(make_checkpoint: Callable[..., Path]) -> Path:
    """A tied model that also stores its head, and rotary frequencies as exporters before August 2023 left
    them."""
    import torch
    from safetensors.torch import load_file

    folder = make_checkpoint(num_hidden_layers=1, tie_word_embeddings=True)
    head = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].clone()
    frequencies = 1 / 10000 ** (torch.arange(0, 64, 2).float() / 64)
    add(folder, **{"lm_head.weight": head, "model.layers.0.self_attn.rotary_emb.inv_freq": frequencies})
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_stored_copy_is_left_out_and_noted(tied: Path, recipe: str, tmp_path: Path) -> None:
    artifact, stored, notes = made(tied, recipe, tmp_path)
    for name in ("lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"):
        assert name not in stored
        assert notes[name].what == "left out"
    alone = 4096 * 256 + 256 * (256 + 128 + 128 + 256 + 3 * 512) + 3 * 256
    assert artifact.manifest.source.parameters == alone


def test_a_head_that_is_not_the_embedding_unties_the_model(tied: Path, tmp_path: Path) -> None:
    """As transformers does, which then uses both."""
    from safetensors.torch import load_file

    source = shutil.copytree(tied, tmp_path / "source")
    head = load_file(source / "model.safetensors")["lm_head.weight"] * 2
    add(source, **{"lm_head.weight": head})
    for recipe in ("gptq-int4", "quanto-int8", "bnb-nf4"):
        artifact, stored, notes = made(source, recipe, tmp_path)
        assert "lm_head.weight" in stored
        assert (
            notes["lm_head.weight"].what == "tie_word_embeddings is set to false"
            or "kept" in notes["lm_head.weight"].what
        )
        assert json.loads((artifact.folder / "config.json").read_text())["tie_word_embeddings"] is False
        assert np.array_equal(StoredTensors(artifact.folder).float32("lm_head.weight"), head.float().numpy())


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied model whose experts transformers stacks when it loads them, and that also stores its head."""
    from safetensors.torch import load_file

    folder = make_decoder("qwen2_moe", tmp_path_factory.mktemp("mixture"), tie_word_embeddings=True)
    add(
        folder,
        **{"lm_head.weight": load_file(folder / "model.safetensors")["model.embed_tokens.weight"].clone()},
    )
    return folder


@pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd little configs
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_head_of_a_tied_mixture(mixture: Path, recipe: str, tmp_path: Path) -> None:
    """What its copy takes is not counted; one that differs is stored, and transformers then uses both."""
    from safetensors.torch import load_file

    head = load_file(mixture / "model.safetensors")["lm_head.weight"]
    apart = shutil.copytree(mixture, tmp_path / "apart")
    add(apart, **{"lm_head.weight": 2 * head})
    artifact, stored, notes = made(mixture, recipe, tmp_path / "of_copy")
    assert (notes["lm_head.weight"].what, "lm_head.weight" in stored) == ("left out", False)
    both, stored, notes = made(apart, recipe, tmp_path / "of_apart")
    assert "lm_head.weight" in notes
    assert json.loads((both.folder / "config.json").read_text())["tie_word_embeddings"] is False
    one, two = StoredTensors(artifact.folder), StoredTensors(both.folder)
    assert np.array_equal(two.float32("lm_head.weight"), 2 * head.numpy())
    assert both.manifest.source.parameters == artifact.manifest.source.parameters + head.numel()
    sizes = [sum(info.size_bytes for info in tensors.info.values()) for tensors in (one, two)]
    assert sizes[1] - sizes[0] == two.info["lm_head.weight"].size_bytes


@pytest.mark.parametrize("recipe", ["quanto-int8", "bnb-nf4"])
def test_a_tensor_that_transformers_renames_when_it_loads_it(
    recipe: str, tmp_path: Path, demo_checkpoint: Path
) -> None:
    """GPT-NeoX: ``embed_out`` in the files of every Pythia, ``lm_head`` in the model; with the causal mask
    and a bias to it."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=256, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    source = tmp_path / "source"
    GPTNeoXForCausalLM(config).save_pretrained(source)
    state = load_file(source / "model.safetensors")
    state = {name.replace("lm_head", "embed_out"): tensor for name, tensor in state.items()}
    state["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 256, 256, dtype=torch.uint8).tril()
    state["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_checkpoint / name, source / name)
    artifact, _, notes = made(source, recipe, tmp_path)
    assert "output layer" in notes["embed_out.weight"].why
    assert notes["gpt_neox.layers.0.attention.bias"].what == "left out"
    assert (
        sum(check.name == "types" and "4" in check.detail for check in artifact.manifest.verification.checks)
        == 1
    )


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path) -> Path:
    """Its own code multiplies with ``dt_proj.weight``; its other projections get inputs that are
    transposed."""
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=4096, hidden_size=64, num_hidden_layers=1, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    folder = tmp_path_factory.mktemp("mamba")
    MambaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_checkpoint / name, folder / name)
    return folder


@pytest.mark.parametrize("recipe", ["bnb-nf4", "bnb-int8"])
def test_a_weight_that_the_models_own_code_uses_is_left_alone(
    mamba: Path, recipe: str, tmp_path: Path
) -> None:
    artifact, _, notes = made(mamba, recipe, tmp_path)
    assert "own code" in notes["backbone.layers.0.mixer.dt_proj.weight"].why
    assert "backbone.layers.0.mixer.in_proj.weight" not in notes  # quantized, and nothing to say
    assert any(
        check.name == "types" and check.detail.startswith("3 ")
        for check in artifact.manifest.verification.checks
    )


def test_what_a_librarys_kernel_for_cpus_refuses_is_noted(mamba: Path, tmp_path: Path) -> None:
    _, _, notes = made(mamba, "quanto-int8", tmp_path)
    assert "contiguous" in notes["backbone.layers.0.mixer.x_proj.weight"].what
    _, _, notes = made(mamba, "bnb-fp4", tmp_path)
    assert "outputs, not a multiple of 32" in notes["backbone.layers.0.mixer.x_proj.weight"].what


def test_layers_that_optimum_quanto_cannot_pack_are_kept(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """bfloat16, 4 bits, outputs that are no multiple of 16; an output layer of 4099 rows among them."""
    source = make_checkpoint(num_hidden_layers=1, intermediate_size=648, vocab_size=4099)
    _, _, notes = made(source, "quanto-int4:lm_head=true", tmp_path)
    for name in ("model.layers.0.mlp.up_proj.weight", "lm_head.weight"):
        assert "16 outputs at a time" in notes[name].why
    assert "model.layers.0.self_attn.q_proj.weight" not in notes


def test_optimum_quanto_itself_runs_the_artifact(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """In bfloat16, on weights mapped from the file: its kernel ends the process where one lies at no multiple
    of 16."""
    source = make_checkpoint(num_hidden_layers=1, attention_bias=True, head_dim=36, num_key_value_heads=1)
    artifact, stored, _ = made(source, "quanto-int8", tmp_path)
    assert any(info.size_bytes % 16 for info in StoredTensors(artifact.folder).info.values()), stored
    code = (
        "import sys, torch; from optimum.quanto import QuantizedModelForCausalLM as Q;"
        "print(bool(Q.from_pretrained(sys.argv[1])(torch.arange(1, 20)[None]).logits.isfinite().all()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(artifact.folder)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["True"]), done.stderr[-2000:]


def test_tensors_lie_where_kernels_want_them(tmp_path: Path) -> None:
    sizes = {"a": (3, 5), "b": (64,), "c": (7, 64), "d": (1,)}
    state = {name: np.arange(np.prod(shape)).astype(np.int8).reshape(shape) for name, shape in sizes.items()}
    state["wide"] = np.arange(32, dtype=np.float32)
    kinds = {"wide": "F32"}
    write_folder(
        tmp_path, [Entry(n, kinds.get(n, "I8"), v.shape) for n, v in state.items()], lambda name: state[name]
    )
    stored = StoredTensors(tmp_path)
    assert [stored.info[name].offset % 64 for name in ("b", "c", "wide")] == [0, 0, 0]
    assert all(np.array_equal(stored.raw(name), value) for name, value in state.items())
