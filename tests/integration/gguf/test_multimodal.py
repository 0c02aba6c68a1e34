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


def test_text_model_is_converted_and_the_rest_said(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "Gemma 3 (4B and up)")
    size = json.loads((DEMO / "config.json").read_text())["vocab_size"]
    _, folder = make(replace(case, settings={**case.settings, "vocab_size": size}), tmp_path / "hf")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(DEMO / name, folder / name)
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
