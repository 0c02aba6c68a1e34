"""compressed-tensors end to end on small models: transformers with the library is the oracle."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_cases import make_decoder
from wrapper_cases import make_wrapper

from quantize import convert
from quantize.artifact.artifact import Artifact, Check
from quantize.checkpoint.tensors import StoredTensors
from quantize.engines.native.compressed_tensors import ROWS_AT_ONCE
from quantize.engines.native.opened import load_compressed
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.formats.stored_compressed import stored_compressed
from quantize.kernels.grid import grid_search
from quantize.kernels.native import load
from quantize.methods.registry import parse_recipe, plan
from quantize.numerics.rtn import round_to_nearest
from quantize.numerics.small_floats import to_e4m3, to_nvfp4
from quantize.process import child_environment
from quantize.recipe import CalibrationOptions, RunOptions
from quantize.sources.opening import open_checkpoint

pytest.importorskip("compressed_tensors")

RUN = RunOptions(device="cpu", progress=False)


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(num_hidden_layers=1)


def checks(artifact: Artifact) -> dict[str, Check]:
    return {check.name: check for check in artifact.manifest.verification.checks}


@pytest.mark.parametrize(
    "short", ["ct-fp8-block", "ct-int8", "ct-w8a16", "ct-w4a16", "ct-nvfp4a16", "ct-mxfp4"]
)
def test_the_library_opens_what_the_second_reader_reads(short: str, checkpoint: Path, tmp_path: Path) -> None:
    """Bit by bit, in float32."""
    convert(checkpoint, short, tmp_path / "one", verify="none", run=RUN)
    stored = stored_compressed(tmp_path / "one")
    whole = dict(stored.whole())
    parameters = dict(load_compressed(tmp_path / "one", "float32", "cpu").named_parameters())
    assert whole.keys() <= parameters.keys()
    for name, values in whole.items():
        assert np.array_equal(parameters[name].detach().numpy(), values), name
    assert stored.format.scheme == parse_recipe(short).canonical["scheme"]


def test_activations_of_nvfp4(checkpoint: Path, tmp_path: Path) -> None:
    calibration = CalibrationOptions(source="stdlib", tokens=1024, sequence_length=128)
    artifact = convert(checkpoint, "ct-nvfp4", tmp_path / "one", calibration=calibration, run=RUN)
    assert "rounding of activations" in checks(artifact)["logits"].detail
    stored = StoredTensors(tmp_path / "one")
    scales = {
        layer: float(stored.float32(f"model.layers.0.{layer}.input_global_scale")[0])
        for layer in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
    }
    assert scales["self_attn.q_proj"] == scales["self_attn.v_proj"]  # one input, and loaders join them
    assert len(set(scales.values())) > 1
    assert artifact.manifest.details["calibration_tokens_used"] == 1024


@pytest.mark.parametrize("short", ["ct-w4a16:sym=false,group_size=32", "ct-w4a16:by=gptq", "ct-w4a16:by=awq"])
def test_whole_conversion(short: str, checkpoint: Path, tmp_path: Path) -> None:
    calibration = CalibrationOptions(source="stdlib", tokens=1024, sequence_length=128)
    artifact = convert(checkpoint, short, tmp_path / "one", calibration=calibration, run=RUN)
    assert artifact.manifest.verification.level == "full"
    logits = checks(artifact)["logits"]
    assert logits.value is not None
    assert logits.value < 1e-9  # float32 on both sides
    quantization = json.loads((tmp_path / "one" / "config.json").read_text())["quantization_config"]
    assert quantization["format"] == "pack-quantized"
    assert not (tmp_path / "one" / "quantize_config.json").exists()
    opened = "quantwright" if "sym=false" in short else "transformers"
    assert artifact.manifest.loads_in[0] == opened


@pytest.mark.parametrize(
    ("model_type", "short", "expert"),
    [
        ("qwen3_moe", "ct-fp8-dynamic", "model.layers.1.mlp.experts.3.down_proj"),
        ("gpt_oss", "ct-mxfp4a16", "model.layers.1.mlp.experts.3.gate_proj"),
    ],
)
def test_experts_are_stored_one_by_one(model_type: str, short: str, expert: str, tmp_path: Path) -> None:
    artifact = convert(make_decoder(model_type, tmp_path / "source"), short, tmp_path / "one", run=RUN)
    assert artifact.manifest.verification.passed
    stored = StoredTensors(tmp_path / "one")
    part = "weight" if short == "ct-fp8-dynamic" else "weight_packed"
    assert f"{expert}.{part}" in stored
    assert f"{expert}.weight_scale" in stored
    quantization = json.loads((tmp_path / "one" / "config.json").read_text())["quantization_config"]
    if model_type == "qwen3_moe":
        assert "model.layers.1.mlp.gate" in quantization["ignore"]


def test_a_model_that_also_sees(tmp_path: Path) -> None:
    source = make_wrapper("gemma3", tmp_path / "source", "bfloat16")
    artifact = convert(source, "ct-fp8-dynamic", tmp_path / "one", run=RUN)
    assert artifact.manifest.verification.level == "full"
    quantization = json.loads((tmp_path / "one" / "config.json").read_text())["quantization_config"]
    patterns = [each.removeprefix("re:") for each in quantization["ignore"] if each.startswith("re:")]
    stored = StoredTensors(tmp_path / "one")
    kinds = {stored.info[name].dtype for name in stored if "vision" in name or "projector" in name}
    assert kinds == {"BF16"}
    for name in ("model.vision_tower.encoder.layers.0.self_attn.q_proj", "vision_tower.fc1"):
        assert any(re.match(pattern, name) for pattern in patterns)
    assert not any(re.match(pattern, "model.layers.0.self_attn.q_proj") for pattern in patterns)


def test_layers_that_loaders_join_share_a_tensor_scale(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, "ct-nvfp4a16", tmp_path / "one", verify="none", run=RUN)
    stored = StoredTensors(tmp_path / "one")
    for names in (("self_attn", ("q_proj", "k_proj", "v_proj")), ("mlp", ("gate_proj", "up_proj"))):
        scales = {
            float(stored.float32(f"model.layers.0.{names[0]}.{layer}.weight_global_scale")[0])
            for layer in names[1]
        }
        assert len(scales) == 1
        assert np.frexp(scales.pop())[0] == 0.5


@pytest.mark.parametrize("short", ["ct-fp8-dynamic", "ct-int8", "ct-w4a16", "ct-w4a16:sym=false"])
def test_what_only_rounds_imports_no_torch(short: str, checkpoint: Path, tmp_path: Path) -> None:
    """And what the compiled kernel writes is what torch writes with the compiled search of scales."""
    library = load()
    if isinstance(library, str) or not library.rounds_rows:
        pytest.skip("no compiled rounding of rows here")
    program = (
        "import sys; from quantize import convert; from quantize.recipe import RunOptions; "
        f"convert({str(checkpoint)!r}, {short!r}, {str(tmp_path / 'one')!r}, verify='none', "
        "run=RunOptions(device='cpu', progress=False, threads=2)); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), check=True)
    assert done.stdout.strip() == "[]"
    source, stored = StoredTensors(checkpoint), stored_compressed(tmp_path / "one")
    format, file = stored.format, StoredTensors(tmp_path / "one")
    for name, linears in format.by_source.items():
        weight = torch.from_numpy(source.float32(name))
        codes = (
            to_e4m3(weight, (1, weight.shape[1]), torch.bfloat16)
            if short == "ct-fp8-dynamic"
            else round_to_nearest(weight, format.grid, search=grid_search())
        )
        for part, array in format.packed(codes).items():
            assert np.array_equal(file.raw(f"{linears[0].name}.{part}"), array), (name, part)


def test_threads_do_not_show(checkpoint: Path, tmp_path: Path) -> None:
    made = [
        convert(
            checkpoint,
            "ct-w4a16",
            tmp_path / str(n),
            verify="none",
            run=RUN.model_copy(update={"threads": n}),
        )
        for n in (1, 3)
    ]
    assert made[0].manifest.files == made[1].manifest.files


@pytest.mark.parametrize("short", ["ct-fp8-block", "ct-w4a16:sym=false", "ct-nvfp4a16"])
def test_large_matrices_go_part_by_part(
    short: str, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Of more weights than are rounded at a time, the last part smaller: as rounded whole."""
    source = make_checkpoint(num_hidden_layers=1, intermediate_size=4480)
    convert(source, short, tmp_path / "one", verify="none", run=RUN)
    stored = stored_compressed(tmp_path / "one")
    name = "model.layers.0.mlp.up_proj.weight"
    assert ROWS_AT_ONCE < 4480 * 256
    assert 4480 * 256 % ROWS_AT_ONCE
    weight = torch.from_numpy(open_checkpoint(source).read_float32(name))
    if short == "ct-fp8-block":
        codes = to_e4m3(weight, (128, 128), torch.bfloat16)
    elif short == "ct-nvfp4a16":
        base = name.removesuffix(".weight")
        whole = StoredTensors(tmp_path / "one").float32(f"{base}.weight_global_scale")
        codes = to_nvfp4(weight, float(whole[0]))
    else:
        codes = round_to_nearest(weight, stored.format.grid, search=grid_search())
    assert np.array_equal(dict(stored.whole())[name], codes.values().numpy())


def test_what_is_ignored(tmp_path: Path) -> None:
    source = open_checkpoint(make_decoder("qwen3_5_text", tmp_path))
    usual = plan(source, parse_recipe("ct-fp8-dynamic")).expected
    assert not any("in_proj" in name for name in usual)
    assert any("linear_attn.out_proj" in name for name in usual)
    ours = plan(source, parse_recipe("ct-fp8-dynamic:ignore=self_attn;down_proj$"))
    assert not any("self_attn" in name or "down_proj" in name for name in ours.expected)
    assert any("in_proj_qkv" in name for name in ours.expected)
    with pytest.raises(BadInput, match="skip=nothing fits no matrix"):
        plan(source, parse_recipe("ct-fp8-dynamic:ignore=nothing"))


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("ct-int8:group_size=64", "says itself what shares a scale"),
        ("ct-nvfp4a16:by=gptq", "goes with w4a16 and w8a16"),
        ("ct-w8a16:by=awq", "goes with w4a16"),
        ("ct-w8a16:sym=false", "w8a16 is symmetric"),
    ],
)
def test_what_does_not_go_together(spelled: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_recipe(spelled)


def test_blocks_that_do_not_fit(make_checkpoint: Callable[..., Path]) -> None:
    source = open_checkpoint(make_checkpoint(hidden_size=192, intermediate_size=320, num_attention_heads=3,
                                             num_key_value_heads=3, num_hidden_layers=1))  # fmt: skip
    with pytest.raises(Unsupported, match="has 192 inputs, and ct-fp8-block packs multiples of 128"):
        plan(source, parse_recipe("ct-fp8-block"))


def test_a_weight_that_is_not_finite(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = make_checkpoint(num_hidden_layers=1)
    state = load_file(source / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight"][3, 4] = torch.inf
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StepFailed, match="up_proj\\.weight holds 1 NaN or Inf"):
        convert(source, "ct-fp8-dynamic", tmp_path / "one", run=RUN)
    assert not (tmp_path / "one").exists()
