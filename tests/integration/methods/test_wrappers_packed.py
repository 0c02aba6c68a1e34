"""GPTQ, AWQ and rounding to nearest of models that also see: their text model is quantized, the rest keeps
its bytes, and transformers opens the whole."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_families import verified_folder
from safetensors.torch import load_file
from wrapper_cases import WRAPPERS, make_wrapper

from quantize.formats.packed import OWN, TRANSFORMERS
from quantize.formats.stored import stored_packed
from quantize.methods.registry import parse_recipe, plan
from quantize.sources.opening import open_checkpoint

pytest.importorskip("gptqmodel")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # transformers' remarks on odd little configs
    pytest.mark.usefixtures("eager"),
]


def made(model_type: str, spelled: str, folder: Path) -> None:
    source = make_wrapper(model_type, folder / "source", "bfloat16")
    outcome = verified_folder(source, spelled, folder)
    # of Llama 4, experts are one tensor that transformers' own loader has no packed form of
    assert outcome.opener == (OWN if model_type == "llama4" else TRANSFORMERS)
    before, after = (load_file(folder / part / "model.safetensors") for part in ("source", "made"))
    seeing = [name for name in before if re.search(r"vision|visual|projector", name)]
    assert len(seeing) > 10
    for name in seeing:
        assert after[name].dtype == before[name].dtype
        assert torch.equal(after[name], before[name]), name
    layers = {name for name in before if "_proj.w" in name and name not in seeing and before[name].ndim == 2}
    assert layers
    assert not layers & after.keys()
    assert {name.replace(".weight", ".qweight") for name in layers} <= after.keys()
    assert {name: info.shape for name, info in stored_packed(folder / "made").checkpoint.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in before.items()
    }
    said = json.loads((folder / "made" / "config.json").read_text())["quantization_config"]
    for name in seeing:
        for module in (name.removesuffix(".weight"), name.removeprefix("model.").removesuffix(".weight")):
            assert is_left(said, module), module
    for name in layers:
        assert not is_left(said, name.removesuffix(".weight"))


def is_left(said: dict[str, Any], module: str) -> bool:
    """As vLLM reads it, whose names of towers begin with the last part of transformers'."""
    if said["quant_method"] == "awq":
        return any(name in module for name in said["modules_to_not_convert"])
    rules = [rule.removeprefix("-:") for rule in said["dynamic"] if rule.startswith("-:")]
    return any(re.match(rule, module) for rule in rules)


@pytest.mark.parametrize("model_type", ["gemma3", "llama4"])
def test_what_is_kept_is_said(model_type: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_wrapper(model_type, tmp_path / "source"))
    notes = plan(checkpoint, parse_recipe("gptq-int4")).planned.notes  # type: ignore[attr-defined]
    beside = [note for note in notes if "what sees or hears" in note.why]
    assert sorted(note.tensor.rpartition(".")[2] for note in beside) == (
        ["multi_modal_projector", "vision_tower" if model_type == "gemma3" else "vision_model"]
    )
    assert all(re.fullmatch(r"kept in F32: \d+\.\d% of the model's weights", note.what) for note in beside)
    assert not [note for note in notes if "vision" in note.tensor and note not in beside]


@pytest.mark.parametrize(
    ("model_type", "spelled"),
    [("gemma3", "awq-int4"), ("qwen3_vl", "gptq-int4"), ("llama4", "rtn-int4")],
)
def test_a_few(model_type: str, spelled: str, tmp_path: Path) -> None:
    made(model_type, spelled, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("model_type", sorted(WRAPPERS))
@pytest.mark.parametrize("spelled", ["gptq-int4", "awq-int4", "rtn-int4", "rtn-int8"])
def test_every_one(model_type: str, spelled: str, tmp_path: Path) -> None:
    made(model_type, spelled, tmp_path)
