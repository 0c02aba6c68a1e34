"""compressed-tensors checkpoints are sources: read as the library unpacks them, converted as any other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quantize import convert
from quantize.errors import BadInput, Unsupported
from quantize.formats.stored_compressed import stored_compressed
from quantize.recipe import RunOptions
from quantize.sources.opening import open_checkpoint

RUN = RunOptions(device="cpu", progress=False)


@pytest.fixture(scope="module")
def original(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(num_hidden_layers=1)


@pytest.mark.parametrize(
    ("short", "kind"),
    [("ct-fp8-dynamic", "FP8"), ("ct-fp8-block", "FP8"), ("ct-int8", "INT8"), ("ct-w8a16", "INT8"),
     ("ct-w4a16:sym=false,group_size=32", "INT4"), ("ct-nvfp4a16", "NVFP4"), ("ct-mxfp4", "MXFP4")],
)  # fmt: skip
def test_every_scheme_is_read(short: str, kind: str, original: Path, tmp_path: Path) -> None:
    """By the reader that tests compare with the library."""
    convert(original, short, tmp_path / "one", verify="none", run=RUN)
    checkpoint = open_checkpoint(tmp_path / "one")
    assert checkpoint.quantized == f"7 of {kind}"
    assert set(checkpoint.tensors) == set(open_checkpoint(original).tensors)
    for name, values in stored_compressed(tmp_path / "one").whole():
        assert np.array_equal(checkpoint.read_float32(name), values), name
    assert "quantization_config" not in checkpoint.config


def test_converted_with_a_warning(original: Path, tmp_path: Path) -> None:
    """To a format of this program's; logits are those of the dequantized weights."""
    convert(original, "ct-w4a16", tmp_path / "source", verify="none", run=RUN)
    artifact = convert(tmp_path / "source", "rtn-int8", tmp_path / "one", verify="tensors", run=RUN)
    notes = [note for note in artifact.manifest.notes if "rounded before" in note.what]
    assert [note.what for note in notes] == ["rounded before this conversion: 7 of INT4"]
    assert "convert the original checkpoint" in notes[0].why


def made_by_the_library(original: Path, folder: Path, weights: dict[str, Any], layout: str) -> dict[str, Any]:
    """A folder that the library packed, with scales of groups that cover the extremes; -> what it unpacks."""
    pytest.importorskip("compressed_tensors")
    import shutil

    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    scheme = QuantizationScheme.model_validate({"targets": ["Linear"], "weights": weights})
    compressor = BaseCompressor.get_value_from_registry(layout)
    state, unpacked = {}, {}
    for name, tensor in load_file(original / "model.safetensors").items():
        if "proj" not in name:
            state[name] = tensor
            continue
        weight = tensor.float()
        grouped = weight.unflatten(1, (-1, weights["group_size"] or weight.shape[1]))
        if weights["strategy"] == "tensor":
            grouped = weight.reshape(1, 1, -1)
        scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), scheme.weights)
        parts = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}
        base = name.removesuffix(".weight")
        packed = compressor.compress(parts, scheme)
        state |= {f"{base}.{part}": each.contiguous() for part, each in packed.items()}
        state[f"{base}.input_scale"] = torch.ones(1)
        unpacked[name] = compressor.decompress(packed, scheme)["weight"]
    folder.mkdir()
    for path in original.iterdir():
        if path.suffix == ".json":
            shutil.copy(path, folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    group = {"targets": ["Linear"], "weights": weights, "format": layout}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "format": layout,
        "quantization_status": "compressed", "ignore": ["lm_head"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return unpacked


@pytest.mark.parametrize(
    ("bits", "kind", "strategy", "group", "symmetric", "layout"),
    [
        (4, "int", "group", 64, False, "pack-quantized"),
        (2, "int", "group", 128, True, "pack-quantized"),
        (8, "int", "channel", None, False, "int-quantized"),
        (8, "float", "tensor", None, True, "float-quantized"),
    ],
)
def test_what_the_library_packed(
    bits: int,
    kind: str,
    strategy: str,
    group: int | None,
    symmetric: bool,
    layout: str,
    original: Path,
    tmp_path: Path,
) -> None:
    weights = {
        "num_bits": bits, "type": kind, "strategy": strategy, "group_size": group, "symmetric": symmetric,
        "dynamic": False,
    }  # fmt: skip
    unpacked = made_by_the_library(original, tmp_path / "theirs", weights, layout)
    checkpoint = open_checkpoint(tmp_path / "theirs")
    assert not any(name.endswith("input_scale") for name in checkpoint.tensors)
    assert len(unpacked) == 7
    for name, values in unpacked.items():
        assert np.array_equal(checkpoint.read_float32(name), values.float().numpy()), name


def test_what_cannot_be_read(original: Path, tmp_path: Path) -> None:
    convert(original, "ct-w4a16", tmp_path / "one", verify="none", run=RUN)
    path, name = tmp_path / "one" / "model.safetensors", "model.layers.0.mlp.up_proj"
    whole = load_file(path)

    def refused(error: type[Exception], words: str, **change: torch.Tensor | None) -> None:
        changed = {**whole, **{f"{name}.{part}": tensor for part, tensor in change.items()}}
        save_file({key: each for key, each in changed.items() if each is not None}, path)
        with pytest.raises(error, match=words):
            open_checkpoint(tmp_path / "one")

    refused(BadInput, r"up_proj\.weight_packed has no .*weight_shape", weight_shape=None)
    refused(BadInput, "weight_shape says", weight_shape=torch.tensor([3, 5]))
    refused(BadInput, "does not fit a weight of shape", weight_scale=torch.ones(512, 3))
    refused(Unsupported, "stored as I32, no scale is", weight_scale=torch.ones(512, 2, dtype=torch.int32))
    save_file(whole, path)
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    config["quantization_config"]["transform_config"] = {"config_groups": {"u": {}}}
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unsupported, match="sparse or rotated"):
        open_checkpoint(tmp_path / "one")
