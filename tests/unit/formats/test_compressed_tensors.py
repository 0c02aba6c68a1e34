"""compressed-tensors: what is packed is read back as the numbers that were meant, by our reader and by the
library; the config is one that the library writes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantize.checkpoint.tensors import write_state
from quantize.formats.compressed_tensors import BLOCK, SCHEMES, CtFormat
from quantize.formats.packed import stored_tensors
from quantize.hf.matrices import Linear
from quantize.numerics.compressed_tensors import dequantize, dequantize_int8, dequantize_words
from quantize.numerics.rtn import round_to_nearest
from quantize.numerics.small_floats import tensor_scale, to_e4m3, to_mxfp4, to_nvfp4

LINEAR = Linear("layer", 160, 384, "layer.weight", "layer.weight")
CASES = [(name, -1 if SCHEMES[name].group == 0 else SCHEMES[name].group, True) for name in SCHEMES]
CASES += [("w4a16", 32, True), ("w4a16", 128, False), ("w4a16", -1, False), ("w8a16", 64, True)]


def made(scheme: str, group: int, symmetric: bool, scale_type: str = "BF16") -> CtFormat:
    return CtFormat(
        SCHEMES[scheme].bits, group, symmetric, (LINEAR,), None, scheme=scheme, scale_type=scale_type
    )


def codes_of(format: CtFormat) -> Any:
    weight = torch.randn(160, 384, generator=torch.Generator().manual_seed(3)) * 0.05
    weight[7] = 0
    how = format.how
    if how.kind == "int":
        return round_to_nearest(weight, format.grid)
    if how.layout.startswith("nvfp4"):
        return to_nvfp4(weight, tensor_scale(float(weight.abs().max())))
    if how.layout.startswith("mxfp4"):
        return to_mxfp4(weight)
    return to_e4m3(weight, (BLOCK, BLOCK) if how.block else (1, 384), torch.bfloat16)


@pytest.mark.parametrize("scale_type", ["BF16", "F16", "F32"])
@pytest.mark.parametrize(("scheme", "group", "symmetric"), CASES)
def test_what_is_packed_is_read_back(scheme: str, group: int, symmetric: bool, scale_type: str) -> None:
    format = made(scheme, group, symmetric, scale_type)
    codes = codes_of(format)
    tensors = format.packed(codes)
    if format.measured:  # a number of its own, not of the weight's
        tensors["input_global_scale"] = np.ones(1, np.float32)
    if scale_type == "BF16" or format.how.kind == "int":
        assert np.array_equal(format.unpacked(tensors), codes.values().numpy())
    sizes = {f"layer.{part}": (array.nbytes, array.shape) for part, array in tensors.items()}
    widths = {"F8_E4M3": 1, "I8": 1, "U8": 1, "BF16": 2, "F16": 2, "F32": 4, "I32": 4, "I64": 8}
    assert sizes == {
        name: (widths[dtype] * int(np.prod(shape)), shape)
        for name, dtype, shape in format.matrix_entries(LINEAR)
    }
    assert all(format.stored_type(name) == dtype for name, dtype, _ in format.matrix_entries(LINEAR))


@pytest.mark.parametrize(("scheme", "group", "symmetric"), CASES)
def test_the_library_unpacks_the_same(scheme: str, group: int, symmetric: bool) -> None:
    """Its arithmetic is that of the scales' dtype: with float32 scales equal bit by bit. 4-bit floats come in
    bfloat16, which holds them because scales of tensors are powers of two."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    format = made(scheme, group, symmetric)
    tensors = format.packed(codes_of(format))
    state = {part: torch.from_numpy(array) for part, array in tensors.items()}
    types = {name.rpartition(".")[2]: dtype for name, dtype, _ in format.matrix_entries(LINEAR)}
    torch_types = {"F8_E4M3": torch.float8_e4m3fn, "BF16": torch.bfloat16}
    state = {part: each.view(torch_types.get(types[part], each.dtype)) for part, each in state.items()}
    if types["weight_scale"] == "BF16":
        state["weight_scale"] = state["weight_scale"].float()
    described = format.own_config()["config_groups"]["group_0"]
    found = BaseCompressor.get_value_from_registry(format.how.layout).decompress(
        state, QuantizationScheme.model_validate(described)
    )
    assert np.array_equal(found["weight"].float().numpy(), format.unpacked(tensors))


def test_a_tensor_scale_that_is_no_power_of_two(tmp_path: Path) -> None:
    """As llm-compressor chooses it: the library unpacks to bfloat16, which no longer holds every product."""
    nvfp4 = pytest.importorskip("compressed_tensors.compressors.nvfp4.base")
    from compressed_tensors.quantization import QuantizationScheme

    format = made("nvfp4a16", 16, True)
    tensors = format.packed(codes_of(format))
    tensors["weight_global_scale"] = np.array([1234.567], np.float32)
    state = {part: torch.from_numpy(array) for part, array in tensors.items()}
    state["weight_scale"] = state["weight_scale"].view(torch.float8_e4m3fn)
    write_state(tmp_path, {f"layer.{part}": each for part, each in state.items()})
    described = format.own_config()["config_groups"]["group_0"]
    theirs = nvfp4.NVFP4PackedCompressor.decompress(state, QuantizationScheme.model_validate(described))
    mine = format.read_matrix(stored_tensors(tmp_path), LINEAR)
    assert np.array_equal(theirs["weight"].float().numpy(), mine)
    exact = format.unpacked(tensors)
    assert not np.array_equal(exact, mine)
    assert np.allclose(exact, mine, rtol=2**-8, atol=0)


@pytest.mark.parametrize(("scheme", "group", "symmetric"), CASES)
def test_the_config_is_one_that_the_library_writes(scheme: str, group: int, symmetric: bool) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationConfig

    config = made(scheme, group, symmetric).own_config()
    again = QuantizationConfig.model_validate(config).model_dump(mode="json")
    known = {key: value for key, value in config.items() if key in again}
    assert {key: again[key] for key in known} == known
    assert config.keys() - again.keys() == {"sparsity_config", "transform_config", "version"}
    assert (config["ignore"], config["quantization_status"]) == (["lm_head"], "compressed")


def test_the_presets_are_the_librarys() -> None:
    schemes = pytest.importorskip("compressed_tensors.quantization.quant_scheme")
    names = {
        "fp8-dynamic": "FP8_DYNAMIC", "fp8-block": "FP8_BLOCK", "int8": "W8A8", "w4a16": "W4A16",
        "nvfp4a16": "NVFP4A16", "nvfp4": "NVFP4", "mxfp4a16": "MXFP4A16", "mxfp4": "MXFP4",
    }  # fmt: skip
    for scheme, name in names.items():
        group = SCHEMES[scheme].group or 128
        mine = made(scheme, group, True).own_config()["config_groups"]["group_0"]
        theirs = schemes.preset_name_to_scheme(name, ["Linear"]).model_dump(mode="json")
        assert mine == {**theirs, "format": SCHEMES[scheme].layout}, scheme


def test_groups_that_are_no_neighbours() -> None:
    """Checkpoints with activation order say which group each input belongs to."""
    random = np.random.default_rng(0)
    codes, order = random.integers(-8, 8, (8, 64)), random.permutation(64)
    scales = random.normal(size=(8, 2)).astype(np.float32)
    groups = np.argsort(order) // 32
    words = np.zeros((8, 8), np.uint32)
    for column in range(64):
        words[:, column // 8] |= (codes[:, column] + 8).astype(np.uint32) << np.uint32(4 * (column % 8))
    found = dequantize_words(words.view(np.int32), scales, None, (8, 64), groups.astype(np.int32))
    assert np.array_equal(found, codes.astype(np.float32) * scales[:, groups])


def test_zero_points_of_int8() -> None:
    codes, zeros = np.array([[-3, 4], [7, -8]], np.int8), np.array([[1], [-2]], np.int8)
    scales = np.array([[0.5], [2.0]], np.float32)
    assert dequantize_int8(codes, scales, zeros).tolist() == [[-2, 1.5], [18, -12]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_scale": np.ones((160, 5), np.float32)}, "scales of shape"),
        ({"weight_packed": np.zeros((160, 7), np.int32)}, "hold no"),
        ({"weight_shape": np.array([160, 999])}, "hold no"),
    ],
)
def test_shapes_that_do_not_fit(change: dict[str, np.ndarray], message: str) -> None:
    format = made("w4a16", 128, True)
    parts: dict[str, Any] = format.packed(codes_of(format))
    parts["weight_scale"] = np.ones((160, 3), np.float32)
    types = {"weight_packed": "I32", "weight_scale": "F32"}
    with pytest.raises(ValueError, match=message):
        dequantize({**parts, **change}, types, None)
