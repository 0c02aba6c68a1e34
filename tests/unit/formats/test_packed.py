"""What is packed is read back as the numbers that the codes mean; each loader is told what is not packed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoder_cases import make_decoder

from quantize.formats.awq import AwqFormat
from quantize.formats.gptq import GptqFormat
from quantize.formats.packed import PackedFormat
from quantize.hf.matrices import Linear
from quantize.methods.base import Work
from quantize.methods.registry import parse_recipe, plan
from quantize.numerics.grids import Codes, Grid
from quantize.sources.opening import open_checkpoint


def random_codes(outputs: int, inputs: int, grid: Grid) -> Codes:
    random = np.random.default_rng(outputs + inputs)
    groups = inputs // grid.columns(inputs)
    codes = random.integers(0, grid.top + 1, (outputs, inputs), dtype=np.uint8)
    zeros = random.integers(grid.lowest_zero, grid.top + 1, (outputs, groups), dtype=np.int32)
    scales = random.normal(size=(outputs, groups)).astype(np.float16).astype(np.float32)
    if grid.symmetric:
        zeros[:] = grid.middle
    return Codes(torch.from_numpy(codes), torch.from_numpy(scales), torch.from_numpy(zeros))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("outputs", "inputs", "group_size"), [(32, 64, 32), (96, 32, -1), (64, 256, 128)])
@pytest.mark.parametrize(
    ("kind", "bits"), [(GptqFormat, 2), (GptqFormat, 3), (GptqFormat, 4), (GptqFormat, 8), (AwqFormat, 4)]
)
def test_what_is_packed_is_read_back(
    kind: type[PackedFormat], bits: int, outputs: int, inputs: int, group_size: int, symmetric: bool
) -> None:
    linear = Linear("layer", outputs, inputs, "layer.weight", "layer.weight")
    format = kind(bits, group_size, symmetric, (linear,))
    codes = random_codes(outputs, inputs, format.grid)
    tensors = format.packed(codes, format.grid)
    assert np.array_equal(format.unpacked(tensors, format.grid), codes.values().numpy())
    stored = {name: (str(array.dtype), array.shape) for name, array in format.pack(linear, codes).items()}
    names = {"I32": "int32", "F16": "float16"}
    assert stored == {name: (names[dtype], shape) for name, dtype, shape in format.matrix_entries(linear)}


def test_a_zero_point_that_the_file_cannot_say() -> None:
    grid = Grid(4, -1, symmetric=False)
    codes = random_codes(8, 32, grid)
    codes.zeros[3] = 0
    awq = AwqFormat(4, -1, False)
    assert np.array_equal(awq.unpacked(awq.packed(codes, grid), grid), codes.values().numpy())
    with pytest.raises(ValueError, match="outside"):
        GptqFormat(4, -1, False).packed(codes, grid)


def planned(model_type: str, spelled: str, folder: Path, **settings: Any) -> Work[Any]:
    return plan(open_checkpoint(make_decoder(model_type, folder, **settings)), parse_recipe(spelled))


def config_of(work: Any) -> dict[str, Any]:
    config: dict[str, Any] = work.format.config(work.checkpoint, {})
    return config


def test_loaders_of_gptq_are_told_which_layers(tmp_path: Path) -> None:
    config = config_of(planned("qwen3_5_text", "rtn-int4", tmp_path))
    (names,) = config["modules_in_block_to_quantize"]
    assert {"linear_attn.in_proj_qkv", "self_attn.q_proj", "mlp.down_proj"} < set(names)
    assert not any("linear_attn.in_proj_a".endswith(name) for name in names)
    assert config["dynamic"]["-:.*\\.linear_attn\\.in_proj_a$"] == {}
    assert "block_name_to_quantize" not in config
    assert "modules_in_block_to_quantize" not in config_of(planned("llama", "rtn-int4", tmp_path / "b"))
    assert (
        config_of(planned("mpt", "rtn-int4", tmp_path / "c"))["block_name_to_quantize"]
        == "transformer.blocks"
    )


def test_loaders_of_awq_are_told_which_layers_not(tmp_path: Path) -> None:
    config = config_of(planned("qwen3_5_text", "rtn-int4:format=awq", tmp_path))
    assert config["modules_to_not_convert"] == [
        f"model.layers.0.linear_attn.in_proj_{letter}" for letter in "ba"
    ]
    llama = config_of(planned("llama", "rtn-int4:format=awq", tmp_path / "b"))
    assert llama["modules_to_not_convert"] is None
    assert llama["meta"] == {}


def test_tensors_that_are_no_matrix_are_told(tmp_path: Path) -> None:
    sources = config_of(planned("gpt_oss", "rtn-int4", tmp_path))["meta"]["sources"]
    assert sources["model.layers.0.mlp.experts.gate_up_proj"] == [4, 64, 192]
    assert len(sources) == 4


def test_factors_of_activations_that_loaders_of_awq_look_for(tmp_path: Path) -> None:
    work: Any = planned("bloom", "rtn-int4:format=awq", tmp_path)
    extras = work.format.extras(work.checkpoint)
    assert {name: array.tolist() for name, array in extras.items()} == {
        f"transformer.h.{layer}.mlp.gelu_impl.scales": [1.0] * 256 for layer in range(2)
    }
    assert planned("llama", "rtn-int4:format=awq", tmp_path / "b").format.extras(work.checkpoint) == {}
