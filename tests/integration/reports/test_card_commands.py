"""The commands on a published card do what they say, with the files that the Hub gives back."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_person import Person
from loopback_hub import LoopbackHub, running

from quantize import convert
from quantize.artifact.artifact import Artifact
from quantize.recipe import CalibrationOptions, RunOptions

RUN = RunOptions(device="cpu", threads=1, progress=False)
TEXT = CalibrationOptions(source="stdlib", tokens=512, sequence_length=128)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with running() as server:
        yield server


def published(hub: LoopbackHub, person: Person, source: Path, out: Path, *recipes: str) -> str:
    """The card of what ``recipes`` make of ``source``."""
    made = [
        convert(source, short, out / short, calibration=TEXT, verify="none", run=RUN).folder
        for short in recipes
    ]
    person.quantwright(
        "publish", *made, "--repo", "me/small", "--name", "Small", "--allow-unverified", "--license", "mit"
    )
    found = hub.repositories["me/small"].at("main")
    assert found is not None
    return found[1]["README.md"].decode()


def blocks(card: str, language: str) -> list[str]:
    return [part.partition("\n```")[0] for part in card.split(f"```{language}\n")[1:]]


def executed(person: Person, card: str) -> list[str]:
    """What every Python block of the card prints."""
    return [person.types(sys.executable, "-c", block) for block in blocks(card, "python")]


def test_gguf_files(hub: LoopbackHub, demo_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    maker, reader = Person(hub, tmp_path / "maker"), Person(hub, tmp_path / "reader")
    card = published(hub, maker, demo_checkpoint, tmp_path / "made", "gguf-q4_k_m", "gguf-q8_0")
    files = hub.repositories["me/small"].at("main")
    assert files is not None
    assert {"Small-4.2M-Q4_K_M.gguf", "Small-4.2M-Q8_0.gguf"} <= set(files[1])
    texts = executed(reader, card)
    assert len(texts) == 2, "llama-cpp-python and transformers"
    assert all(len(text.strip()) > 20 for text in texts)
    check = next(block for block in blocks(card, "sh") if "hf download" in block).splitlines()
    folder = reader.home / "DIR"
    reader.pulls("me/small", reader.home / "DIR")
    (words,) = [line.split() for line in check if " attest " in line]
    assert words[:3] == ["quantwright", "attest", "DIR/Small-4.2M-Q4_K_M.gguf"]
    said = reader.quantwright(*words[1:-1], demo_checkpoint, "-o", "statement.json", "--threads", 1, "--json")
    assert json.loads(said.splitlines()[-1])["whole"] == ["Small-4.2M-Q4_K_M.gguf"]
    reader.quantwright("verify", folder / "Small-4.2M-Q4_K_M.gguf", "--attestation", "statement.json")


@pytest.mark.long
@pytest.mark.parametrize(
    ("recipe", "needs"),
    [
        ("bfloat16", "transformers"), ("bnb-nf4", "bitsandbytes"), ("quanto-int8", "optimum.quanto"),
        ("gptq-int4", "gptqmodel"), ("awq-int4", "gptqmodel"),
    ],
)  # fmt: skip
def test_folders(hub: LoopbackHub, demo_checkpoint: Path, tmp_path: Path, recipe: str, needs: str) -> None:
    pytest.importorskip(needs)
    maker, reader = Person(hub, tmp_path / "maker"), Person(hub, tmp_path / "reader")
    card = published(hub, maker, demo_checkpoint, tmp_path / "made", recipe)
    texts = executed(reader, card)
    assert len(texts) == 1 + (needs == "gptqmodel")
    assert all(len(text.strip()) > 20 for text in texts)
    reader.pulls("me/small", reader.home / "DIR")
    Artifact.load(reader.home / "DIR").check_files()
    reader.quantwright("attest", "DIR", "--source", demo_checkpoint, "-o", "statement.json")
    reader.quantwright("verify", "DIR", "--attestation", "statement.json")
