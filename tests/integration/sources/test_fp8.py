"""Checkpoints in float8 with a scale for each block: read exactly, and converted as any other."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from family_case import TIGHT, Case
from family_cases import CASES, llamacpp_logits, make, write_gguf_f32
from safetensors.torch import load_file, save_file

from quantize import convert
from quantize.errors import BadInput
from quantize.sources.opening import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")
BLOCK = 32


def to_float8(
    folder: Path, block: int = BLOCK, scale_dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """The folder's linears in float8, block by block, as their publishers make them; what each then means, as
    float32."""
    tensors, meant = load_file(folder / "model.safetensors"), {}
    for name, weight in list(tensors.items()):
        if "_proj" not in name or weight.ndim != 2:
            continue
        rows, columns = weight.shape
        codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
        scales = torch.empty((-(-rows // block), -(-columns // block)), dtype=scale_dtype)
        back = torch.empty(weight.shape, dtype=torch.float32)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                at = (slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
                part = weight[at].float()
                scales[i, j] = part.abs().max() / 448
                codes[at] = (part / scales[i, j].float()).to(torch.float8_e4m3fn)
                back[at] = codes[at].float() * scales[i, j].float()
        tensors[name], tensors[name + "_scale_inv"], meant[name] = codes, scales, back
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [block, block],
        "activation_scheme": "dynamic",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return meant


@pytest.mark.parametrize("name", ["DeepSeek-V3", "Qwen3"])
def test_logits_are_those_of_the_weights_that_the_blocks_mean(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    case: Case = next(case for case in CASES if case.name == name)
    model, folder = make(case, tmp_path / "hf")
    meant = to_float8(folder, scale_dtype=torch.bfloat16 if name == "Qwen3" else torch.float32)
    checkpoint = open_checkpoint(folder, tokenizer=False)
    assert meant
    assert not any("scale_inv" in tensor for tensor in checkpoint.tensors)
    for tensor, values in meant.items():
        assert np.array_equal(checkpoint.read_float32(tensor), values.numpy()), tensor
    with torch.no_grad():
        plain = {
            key: value
            for key, value in load_file(folder / "model.safetensors").items()
            if "_scale_inv" not in key
        }
        save_file({**plain, **meant}, tmp_path / "plain.safetensors", metadata={"format": "pt"})
        kept = tmp_path / "plain"
        kept.mkdir()
        (tmp_path / "plain.safetensors").rename(kept / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        del config["quantization_config"]
        (kept / "config.json").write_text(json.dumps(config))
        model = type(model).from_pretrained(kept, dtype=torch.float32, attn_implementation="eager").eval()
        ids = np.random.default_rng(3).integers(1, 160, (1, 48))
        expected = model(torch.from_numpy(ids)).logits.numpy()
    write_gguf_f32(folder, tmp_path / "model.gguf")
    got = llamacpp_logits(tmp_path / "model.gguf", ids)
    assert np.abs(got - expected).max() / expected.std() < TIGHT


@pytest.mark.parametrize("recipe", ["gguf-q8_0", "float32", "quanto-int8"])
def test_every_method_takes_one(recipe: str, tmp_path: Path, make_checkpoint) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip({"gguf-q8_0": "llama_cpp", "quanto-int8": "optimum.quanto"}.get(recipe, "torch"))
    folder = make_checkpoint()
    meant = to_float8(folder, 128)
    made = convert(folder, recipe, tmp_path / "out")
    assert made.manifest.verification.passed
    assert any("F8_E4M3" in note.what for note in made.manifest.notes)
    if recipe == "float32":
        got = open_checkpoint(tmp_path / "out")
        assert "quantization_config" not in got.config
        for name, values in meant.items():
            assert np.array_equal(got.read_float32(name), values.numpy())


def test_what_does_not_fit_is_refused(tmp_path: Path, make_checkpoint) -> None:  # type: ignore[no-untyped-def]
    folder = make_checkpoint()
    to_float8(folder, 128)
    whole = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight_scale_inv"
    save_file({**whole, name: whole[name][:1, :1].repeat(3, 3)}, folder / "model.safetensors")
    with pytest.raises(BadInput, match=r"up_proj.weight_scale_inv has shape \[3, 3\]; one of \[512, 256\]"):
        open_checkpoint(folder)
    save_file({key: value for key, value in whole.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(BadInput, match=r"up_proj.weight is stored as F8_E4M3 without"):
        open_checkpoint(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = [0, 128]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="weight_block_size: expected two sizes"):
        open_checkpoint(folder)


@pytest.mark.parametrize("scale_of_all", [False, True])
def test_one_expert_is_read_as_among_all(scale_of_all: bool, tmp_path: Path) -> None:
    """Experts in one tensor of three axes; of a matrix, whose rows may be parts of blocks, all is read."""
    case = next(case for case in CASES if case.name == "Mixtral (fused experts)")
    _, folder = make(case, tmp_path / "hf")
    to_float8(folder)
    tensors, random = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(2)
    stacked = [name for name, tensor in tensors.items() if tensor.ndim == 3]
    for name in stacked:
        shape = tensors[name].shape
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        blocks = [shape[0], *(-(-size // BLOCK) for size in shape[1:])]
        tensors[name + "_scale_inv"] = torch.rand([] if scale_of_all else blocks, generator=random) + 0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(folder, tokenizer=False)
    assert len(stacked) == 4
    for name in stacked:
        entry = checkpoint.entries(name)
        assert entry is not None
        assert all(np.array_equal(entry(i), whole) for i, whole in enumerate(checkpoint.read(name)))
    assert checkpoint.entries("model.layers.0.self_attn.q_proj.weight") is None
    norm, read = "model.norm.weight", checkpoint.entries("model.norm.weight")
    assert read is not None
    assert read(3) == checkpoint.read(norm)[3]
