"""gpt-oss as it is published, its experts in MXFP4: read exactly, and converted as any other."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from family_cases import CASES, llamacpp_logits, make, write_gguf_f32
from safetensors.torch import load_file, save_file

from quantize.errors import BadInput
from quantize.numerics.mxfp4 import dequantize_mxfp4
from quantize.sources.opening import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")


def packed(folder: Path) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """The folder's experts as random codes and scales; -> the model, what each tensor of them means."""
    model, _ = make(next(case for case in CASES if case.name == "gpt-oss"), folder)
    tensors = load_file(folder / "model.safetensors")
    rng, meant = np.random.default_rng(5), {}
    parameters = dict(model.named_parameters())
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        codes = rng.integers(0, 256, (experts, rows, columns // 32, 16), dtype=np.uint8)
        scales = rng.integers(121, 125, (experts, rows, columns // 32), dtype=np.uint8)
        tensors[name + "_blocks"], tensors[name + "_scales"] = (
            torch.from_numpy(codes),
            torch.from_numpy(scales),
        )
        meant[name] = np.ascontiguousarray(dequantize_mxfp4(codes, scales).swapaxes(1, 2))
        with torch.no_grad():
            parameters[name].copy_(torch.from_numpy(meant[name]))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    return model, meant


def test_read_and_converted(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    model, meant = packed(tmp_path / "hf")
    checkpoint = open_checkpoint(tmp_path / "hf", tokenizer=False)
    assert meant
    assert checkpoint.quantized == f"{len(meant)} of MXFP4"
    assert not any(name.endswith(("_blocks", "_scales")) for name in checkpoint.tensors)
    for name, values in meant.items():
        assert checkpoint.tensors[name].dtype == "BF16"
        assert np.array_equal(checkpoint.read_float32(name), values), name
    write_gguf_f32(tmp_path / "hf", tmp_path / "model.gguf")
    ids = np.random.default_rng(3).integers(1, 160, (1, 48))
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    got = llamacpp_logits(tmp_path / "model.gguf", ids)
    assert np.abs(got - expected).max() / expected.std() < 5e-5


def test_scales_that_are_missing_or_do_not_fit(tmp_path: Path) -> None:
    packed(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.experts.down_proj_scales"
    scales = tensors.pop(name)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"down_proj_blocks has no .*down_proj_scales"):
        open_checkpoint(tmp_path, tokenizer=False)
    save_file(
        {**tensors, name: scales[:, :-1].contiguous()},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(BadInput, match="one scale a group"):
        open_checkpoint(tmp_path, tokenizer=False)
