"""gpt-oss as it is published, its experts in MXFP4: read exactly, and converted as any other."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from family_cases import CASES, llamacpp_logits, make, write_gguf_f32
from safetensors.torch import load_file, save_file

from quantize import convert
from quantize.errors import BadInput, StepFailed
from quantize.gguf.container.reader import read_gguf
from quantize.numerics.mxfp4 import dequantize_mxfp4
from quantize.sources.opening import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")


def packed(folder: Path, **more: Any) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """The folder's experts as random codes and scales; -> the model, what each tensor of them means."""
    case = next(case for case in CASES if case.name == "gpt-oss")
    model, _ = make(replace(case, settings={**case.settings, **more}), folder)
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
        entry = checkpoint.entries(name)
        assert entry is not None
        assert all(np.array_equal(entry(i), whole) for i, whole in enumerate(checkpoint.read(name)))
    write_gguf_f32(tmp_path / "hf", tmp_path / "model.gguf")
    ids = np.random.default_rng(3).integers(1, 160, (1, 48))
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    got = llamacpp_logits(tmp_path / "model.gguf", ids)
    assert np.abs(got - expected).max() / expected.std() < 5e-5


def naive_blocks(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """ggml's ``block_mxfp4``, (rows, groups * 17): a scale; then byte j holds values j and j + 16."""
    out = []
    for row, factors in zip(codes, scales, strict=True):
        line: list[int] = []
        for block, scale in zip(row, factors, strict=True):
            single = [code for byte in block.tolist() for code in (byte & 15, byte >> 4)]
            line += [int(scale), *(single[j] | single[j + 16] << 4 for j in range(16))]
        out.append(line)
    return np.array(out, np.uint8)


def test_blocks_stay_what_they_are(tmp_path: Path) -> None:
    """In a GGUF of llama.cpp's MXFP4 mixture, bit for bit; read back, each value is the source's."""
    pytest.importorskip("llama_cpp")
    folder = tmp_path / "hf"
    _, meant = packed(folder, vocab_size=4096)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "demo" / "checkpoint" / name, folder / name)
    stored = load_file(folder / "model.safetensors")
    artifact = convert(folder, "gguf-mxfp4_moe", tmp_path / "out")
    assert artifact.verified == "full"
    (path,) = artifact.folder.glob("*.gguf")
    file = read_gguf(path)
    for layer in range(2):
        experts = f"model.layers.{layer}.mlp.experts."
        for name, source, start in (("gate", "gate_up", 0), ("up", "gate_up", 1), ("down", "down", None)):
            codes, scales = (
                stored[f"{experts}{source}_proj_{part}"].numpy() for part in ("blocks", "scales")
            )
            if start is not None:  # interleaved
                codes, scales = codes[:, start::2], scales[:, start::2]
            expected = np.stack([naive_blocks(*pair) for pair in zip(codes, scales, strict=True)])
            tensor = f"blk.{layer}.ffn_{name}_exps.weight"
            assert file.tensors[tensor].kind.name == "MXFP4"
            assert np.array_equal(file.raw(tensor).reshape(expected.shape), expected)
    kinds = {
        t.kind.name for name, t in file.tensors.items() if "attn_q.weight" in name or "token_embd" in name
    }
    assert kinds == {"Q8_0"}
    back = open_checkpoint(path)
    for name, values in meant.items():
        assert np.array_equal(back.read_float32(name), values)


def test_a_scale_that_is_no_number_is_named(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    folder = tmp_path / "hf"
    packed(folder, vocab_size=4096)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "demo" / "checkpoint" / name, folder / name)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.experts.down_proj_scales"][1, 5, 0] = 255
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StepFailed, match=r"model\.layers\.1\.mlp\.experts\.down_proj holds 32 NaN"):
        convert(folder, "gguf-mxfp4_moe", tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
