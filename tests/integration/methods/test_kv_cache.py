"""Scales of a float8 cache of keys and values: a plain pass of transformers in float64 is the oracle."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from decoder_cases import make_decoder
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from quantize import convert
from quantize.artifact.artifact import Artifact
from quantize.calibration.windows import load_calibration
from quantize.checkpoint.tensors import StoredTensors
from quantize.errors import BadInput, Unsupported
from quantize.formats.compressed_tensors import CtFormat
from quantize.formats.stored_compressed import stored_compressed
from quantize.methods.registry import parse_recipe, plan
from quantize.recipe import CalibrationOptions, RunOptions
from quantize.sources.opening import open_checkpoint

pytest.importorskip("compressed_tensors")

RUN = RunOptions(device="cpu", progress=False)
TEXT = CalibrationOptions(source="stdlib", tokens=1024, sequence_length=128)
RECIPE = "ct-fp8-dynamic:kv_cache=fp8"


@pytest.fixture(scope="module")
def source(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(num_hidden_layers=2)


@pytest.fixture(scope="module")
def artifact(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return convert(source, RECIPE, tmp_path_factory.mktemp("kv") / "one", calibration=TEXT, run=RUN)


def test_scales_are_the_largest_magnitudes_over_448(source: Path, artifact: Artifact) -> None:
    """Those of a plain pass in float64; 2**-8 is the rounding of bfloat16, in which the file holds scales."""
    rows = load_calibration(open_checkpoint(source), TEXT, RUN).ids
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64)
    with torch.no_grad():
        kept = model(torch.from_numpy(rows), use_cache=True).past_key_values
    with safe_open(artifact.folder / "model.safetensors", "pt") as file:
        for number, layer in enumerate(kept.layers):
            for part, states in (("k_scale", layer.keys), ("v_scale", layer.values)):
                found = file.get_tensor(f"model.layers.{number}.self_attn.{part}")
                assert found.shape == (1,)
                assert found.dtype == torch.bfloat16
                want = float(states.abs().max()) / 448
                assert abs(float(found) - want) <= 2.0**-8 * want
    assert artifact.manifest.details["calibration_tokens_used"] == rows.size


def test_the_library_rounds_keys_and_values_with_them(artifact: Artifact) -> None:
    """Logits of transformers with the library are ours with that rounding simulated; without it they are
    not, so that the check sees it."""
    quantization = json.loads((artifact.folder / "config.json").read_text())["quantization_config"]
    assert quantization["kv_cache_scheme"] == {
        "num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False,
        "group_size": None,
    }  # fmt: skip
    found = {check.name: check for check in artifact.manifest.verification.checks}
    assert artifact.manifest.verification.level == "full"
    assert found["logits"].value is not None
    assert found["logits"].value < 1e-9
    model = AutoModelForCausalLM.from_pretrained(artifact.folder, dtype=torch.float32)
    stored = StoredTensors(artifact.folder)
    for name in ("k_scale", "v_scale"):
        parameter = model.get_submodule("model.layers.1.self_attn").get_parameter(name)
        assert parameter.item() == float(stored.float32(f"model.layers.1.self_attn.{name}")[0])
    ids = torch.arange(5, 69)[None]
    with torch.no_grad():
        rounded = model(ids).logits
        for layer in model.model.layers:
            layer.self_attn.quantization_enabled = False
        plain = model(ids).logits
    assert float((rounded - plain).abs().max()) > 1e-4


def test_an_artifact_is_read_as_it_was_made(artifact: Artifact) -> None:
    stored = stored_compressed(artifact.folder)
    assert isinstance(stored.format, CtFormat)
    assert stored.format.kv_cache
    kinds = stored.format.activation_types(artifact.folder)
    assert kinds is not None
    assert kinds["model.layers.1.self_attn"].startswith("kv_fp8_")
    assert not any("scale" in name for name in stored.checkpoint.tensors)


def test_weights_are_those_without_a_cache(source: Path, artifact: Artifact, tmp_path: Path) -> None:
    """And the recipe that says nothing of a cache keeps its digest."""
    other = convert(source, "ct-fp8-dynamic", tmp_path / "plain", run=RUN, verify="none")
    assert "kv_cache" not in other.manifest.recipe
    mine, plain = StoredTensors(artifact.folder), StoredTensors(tmp_path / "plain")
    assert {name for name in mine if name not in plain} == {
        f"model.layers.{layer}.self_attn.{part}" for layer in (0, 1) for part in ("k_scale", "v_scale")
    }
    for name in plain:
        assert mine.raw(name).tobytes() == plain.raw(name).tobytes(), name


@pytest.mark.parametrize("short", ["ct-w4a16:by=gptq,kv_cache=fp8", "ct-int8:kv_cache=int8"])
def test_what_it_does_not_go_with(short: str) -> None:
    with pytest.raises(BadInput, match="kv_cache"):
        parse_recipe(short)


def test_other_caches_are_refused(tmp_path: Path) -> None:
    source = make_decoder("deepseek_v3", tmp_path / "source")
    with pytest.raises(Unsupported, match="drop kv_cache"):
        plan(open_checkpoint(source), parse_recipe(RECIPE))
