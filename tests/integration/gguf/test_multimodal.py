"""A model that also sees, to a GGUF of its text model: made, verified, and read back."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from family_cases import CASES, make

from quantize import convert
from quantize.sources.opening import open_checkpoint

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.filterwarnings("ignore")
DEMO = Path(__file__).parents[3] / "demo" / "checkpoint"


NAMES = ("Gemma 3 (4B and up)", "Qwen2.5-VL", "Qwen3-VL", "Mistral Small 3.1", "Qwen3.5 (with images)")


def made(name: str, folder: Path) -> Path:
    """With the demo's tokenizer."""
    case = next(case for case in CASES if case.name == name)
    size = json.loads((DEMO / "config.json").read_text())["vocab_size"]
    _, folder = make(replace(case, settings={**case.settings, "vocab_size": size}), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(DEMO / name, folder / name)
    return folder


@pytest.mark.parametrize(
    "name", [name if name == "Qwen3-VL" else pytest.param(name, marks=pytest.mark.long) for name in NAMES]
)
def test_logits_are_compared_with_those_of_the_whole(name: str, tmp_path: Path) -> None:
    """Verification runs the text model of transformers' own wrapper."""
    artifact = convert(made(name, tmp_path / "hf"), "gguf-q8_0", tmp_path / "out")
    assert artifact.verified == "full"
    checks = artifact.manifest.verification.checks
    assert [check.passed for check in checks if check.name == "logits"] == [True]


def test_text_model_is_converted_and_the_rest_said(tmp_path: Path) -> None:
    folder = made("Gemma 3 (4B and up)", tmp_path / "hf")
    convert(str(folder), "gguf-q8_0", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["verification"]["level"] == "full"
    assert ["*", "left out: multi_modal_projector, vision_tower"] in [
        [note["tensor"], note["what"]] for note in manifest["notes"]
    ]
    (file,) = (tmp_path / "out").glob("*.gguf")
    back = open_checkpoint(file)
    assert back.architecture == "Gemma3ForCausalLM"
    whole = open_checkpoint(folder).tensors
    assert {f"language_model.{name}" for name in back.tensors} == {
        name for name in whole if name.startswith("language_model.")
    }
