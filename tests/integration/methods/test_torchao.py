"""torchao's int8 weights, against the library and transformers themselves."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_cases import make_decoder
from safetensors import safe_open
from safetensors.torch import load_file

from quantize import convert
from quantize.checkpoint.safetensors_header import read_metadata
from quantize.checkpoint.tensors import write_state
from quantize.engines.torchao import check_version
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.formats.torchao import TorchAoFormat
from quantize.methods.registry import parse_recipe, plan
from quantize.recipe import RunOptions
from quantize.sources.opening import open_checkpoint

pytest.importorskip("torchao")
pytestmark = pytest.mark.filterwarnings("ignore")  # torchao's own, when it is imported
CPU = RunOptions(device="cpu", progress=False)
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def source(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(num_hidden_layers=1)


@pytest.mark.parametrize(("short", "group"), [("torchao-int8", None), ("torchao-int8:group_size=64", 64)])
def test_files_are_those_that_transformers_saves(
    short: str, group: int | None, source: Path, tmp_path: Path
) -> None:
    """The same tensors, bit by bit, the same metadata and quantization_config; and transformers' loader,
    which takes them, has the weights that the second reader reads."""
    from torchao.quantization import Int8WeightOnlyConfig, PerGroup, PerRow
    from transformers import AutoModelForCausalLM, TorchAoConfig

    config = TorchAoConfig(Int8WeightOnlyConfig(granularity=PerGroup(group) if group else PerRow()))
    theirs = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.bfloat16, quantization_config=config, device_map={"": "cpu"}
    )
    theirs.save_pretrained(tmp_path / "theirs")
    convert(source, short, tmp_path / "ours", verify="none", run=CPU)
    paths = [tmp_path / name / "model.safetensors" for name in ("theirs", "ours")]
    expected, found = (load_file(path) for path in paths)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    with safe_open(paths[0], "pt") as file:
        said = file.metadata()
    ours = read_metadata(paths[1])
    assert {**ours, "tensor_names": sorted(json.loads(ours["tensor_names"]))} == {
        **said,
        "tensor_names": sorted(json.loads(said["tensor_names"])),
    }
    configs = [json.loads((p.parent / "config.json").read_text())["quantization_config"] for p in paths]
    assert configs[0].pop("modules_to_not_convert") is None
    assert configs[1].pop("modules_to_not_convert") == ["lm_head"]
    assert configs[0] == configs[1]
    opened = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, device_map={"": "cpu"}
    )
    values = dict(TorchAoFormat().dequantize(tmp_path / "ours", open_checkpoint(source)))
    assert values.keys() == open_checkpoint(source).tensors.keys()
    for name, parameter in opened.named_parameters():
        exact = parameter.dequantize(torch.float32) if "_proj" in name else parameter
        assert np.array_equal(exact.detach().numpy(), values[name]), name


def test_experts_of_one_parameter_stay_and_are_noted(tmp_path: Path) -> None:
    folder = make_decoder("qwen3_moe", tmp_path / "source")
    artifact = convert(folder, "torchao-int8", tmp_path / "a", run=CPU)
    assert artifact.manifest.verification.level == "full"
    notes = {note.tensor: note.why for note in artifact.manifest.notes}
    assert "torchao quantizes linear layers only" in notes["experts"]


@pytest.mark.parametrize("family", ["falcon", "gpt2"])
def test_nothing_to_quantize(family: str, tmp_path: Path) -> None:
    """Falcon's own class of linear layers multiplies with the weight itself; GPT-2's is none."""
    checkpoint = open_checkpoint(make_decoder(family, tmp_path))
    with pytest.raises(Unsupported, match="has no linear layers for torchao to quantize"):
        plan(checkpoint, parse_recipe("torchao-int8"))


def test_layers_of_no_whole_groups_stay(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_checkpoint(num_hidden_layers=1, intermediate_size=320)
    artifact = convert(folder, "torchao-int8:group_size=128", tmp_path / "a", run=CPU)
    why = {note.tensor: note.why for note in artifact.manifest.notes}
    assert why["model.layers.0.mlp.down_proj.weight"] == "its inputs are no whole number of groups"
    assert len([name for name in why if "layers" in name]) == 1
    assert artifact.manifest.verification.level == "full"


def test_sizes_are_known_before(source: Path, tmp_path: Path) -> None:
    for short in ("torchao-int8", "torchao-int8:group_size=32"):
        work = plan(open_checkpoint(source), parse_recipe(short))
        artifact = convert(source, short, tmp_path / parse_recipe(short).slug, verify="none", run=CPU)
        assert work.output_bytes == pytest.approx(artifact.size_bytes, rel=0.005)


def test_metadata_that_describe_other_tensors(source: Path, tmp_path: Path) -> None:
    """The loader goes by them: what they say otherwise, it would compute otherwise."""
    convert(source, "torchao-int8", tmp_path / "a", verify="none", run=CPU)
    path = tmp_path / "a" / "model.safetensors"
    metadata, state = read_metadata(path), load_file(path)
    for old, new in (("[1, 256]", "[1, 64]"), ("Int8Tensor", "Int4Tensor"), (metadata[UP], "{")):
        damaged = {**metadata, UP: metadata[UP].replace(old, new)}
        assert damaged != metadata
        (tmp_path / "b").mkdir(exist_ok=True)
        write_state(tmp_path / "b", state, metadata=damaged)
        with pytest.raises(StepFailed, match=f"{UP}: the metadata of its file do not describe int8 weights"):
            dict(TorchAoFormat().dequantize(tmp_path / "b", open_checkpoint(source)))


@pytest.mark.parametrize("found", ["0.9.0", "0.17.1"])
def test_versions_that_store_otherwise_are_refused(found: str) -> None:
    with pytest.raises(Unsupported, match=f"torchao {found} is installed, and 0.18 or newer is needed"):
        check_version(found)
    check_version("0.18.0")


@pytest.mark.parametrize("value", ["0", "48", "x"])
def test_group_sizes(value: str) -> None:
    with pytest.raises(BadInput, match="group_size"):
        parse_recipe(f"torchao-int8:group_size={value}")
    assert parse_recipe("torchao-int8:group_size=32").canonical["group_size"] == 32
