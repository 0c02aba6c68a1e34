"""AWQ by this program's own engine, from a checkpoint to a verified artifact, on small models of many
kinds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_cases import make_decoder

from quantize.artifact.artifact import Artifact
from quantize.calibration.windows import load_calibration
from quantize.conversion import convert
from quantize.methods.registry import parse_recipe, plan
from quantize.recipe import CalibrationOptions, RunOptions
from quantize.sources.opening import open_checkpoint

RUN = RunOptions(device="cpu", threads=1, progress=False)
TEXT = CalibrationOptions(tokens=2048, sequence_length=64)
NATIVE = "awq-int4:engine=native,group_size=32"
#: kinds that the test takes by itself; the others are long
QUICK = ("llama", "qwen3_moe")
KINDS = (*QUICK, "gemma3_text", "gpt2", "gpt_oss", "phi3", "olmo2", "falcon", "nemotron", "qwen3_next")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def made(kind: str, folder: Path, recipe: str = NATIVE) -> Artifact:
    source = make_decoder(kind, folder / "source")
    return convert(source, recipe, folder / "artifact", calibration=TEXT, run=RUN)


@pytest.mark.parametrize(
    "kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.long) for k in KINDS]
)
def test_every_kind_is_converted_and_verified(kind: str, tmp_path: Path) -> None:
    manifest = made(kind, tmp_path).manifest
    assert manifest.verification.level == "full"
    assert manifest.engine == "quantwright"
    unscaled = {note.tensor for note in manifest.notes if note.what.startswith("no scales")}
    assert ("transformer.h.*.mlp.c_proj" in unscaled) == (kind == "gpt2")
    assert not unscaled if kind in ("llama", "gemma3_text", "phi3", "nemotron") else True


def test_a_model_that_needs_scales_is_nearer_than_rounded(tmp_path: Path) -> None:
    """Norms with weights that differ a hundredfold, as in real models, make inputs of which few matter. What
    leaves the model, compared with what left it before."""
    from safetensors.torch import load_file, save_file

    folder = make_decoder("llama", tmp_path / "source")
    tensors = load_file(folder / "model.safetensors")
    random = torch.Generator().manual_seed(0)
    for name, each in tensors.items():
        if "layernorm" in name:
            each.mul_(torch.exp(1.2 * torch.randn(each.shape, generator=random)))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(folder)
    calibration = load_calibration(checkpoint, TEXT)

    def distance(spelled: str) -> float:
        work = plan(checkpoint, parse_recipe(spelled))
        stage = tmp_path / spelled.partition(":")[0]
        stage.mkdir()
        work.write(stage, RUN, calibration)
        weights = dict(work.read(stage))
        return logits_distance(folder, weights)

    awq = distance(NATIVE)
    nearest = distance("rtn-int4:format=awq,group_size=32,sym=false")
    assert awq < 0.9 * nearest  # 0.83 was seen


def logits_distance(folder: Path, weights: dict[str, np.ndarray]) -> float:
    """Mean squared difference of the logits when ``weights`` stand for the source's."""
    from quantize.hf.load import load_model

    ids = torch.from_numpy(np.random.default_rng(9).integers(3, 4000, (8, 64)))
    model = load_model(folder, "float32", "cpu")
    with torch.no_grad():
        before = model(input_ids=ids).logits
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name]))
        return float((model(input_ids=ids).logits - before).square().mean())


@pytest.mark.long
def test_an_expert_that_few_tokens_reach_is_named(tmp_path: Path) -> None:
    source = make_decoder("qwen3_moe", tmp_path / "source", num_experts=16)
    few = CalibrationOptions(tokens=256, sequence_length=64)
    notes = convert(source, NATIVE, tmp_path / "artifact", calibration=few, run=RUN).manifest.notes
    assert any("of all experts of its layer" in note.what for note in notes)
