"""No false alarm: what each method makes of small models of the families, verified as anybody's file is."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from family_cells import MODELS, Openers, make_source
from packed_families import RUN, random_calibration

from quantize.errors import BadInput, Unsupported
from quantize.methods.registry import parse_recipe, plan
from quantize.sources.opening import open_checkpoint
from quantize.verification.across_runtimes import verify_anywhere

for library in ("gptqmodel", "optimum.quanto", "bitsandbytes", "torchao", "llama_cpp"):
    pytest.importorskip(library)
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd little configs
RECIPES = (
    "gguf-q4_k_m",
    "gptq-int4",
    "awq-int4",
    "quanto-int8",
    "bnb-nf4",
    "bnb-int8",
    "torchao-int8",
    "ct-w4a16",
)


@pytest.fixture(scope="module")
def openers() -> Iterator[Openers]:
    made = Openers()
    yield made
    made.close()


def check(model: str, spelled: str, folder: Path, openers: Openers) -> str:
    """What is wrong with it; "" where nothing is, or the recipe is refused."""
    source = folder / "source"
    if not source.exists():
        make_source(model, source)
    checkpoint = open_checkpoint(source)
    try:
        work = plan(checkpoint, parse_recipe(spelled))
    except (BadInput, Unsupported):
        return ""
    stage = folder / spelled
    stage.mkdir()
    work.write(stage, RUN, random_calibration() if work.recipe.calibrated else None)
    if work.format.hf_folder:
        for path in work.checkpoint.companion_files:
            shutil.copyfile(path, stage / path.name)
    report = verify_anywhere(str(stage), str(source), None, RUN, start=openers.of(work, stage))
    wrong = [f"{p.what}: {p.why}" for p in report.problems if p.level == "wrong"]
    wrong += [
        f"{ran.name} {ran.status}: {ran.why}"
        for ran in report.runtimes
        if ran.status in ("differs", "failed")
    ]
    shutil.rmtree(stage)
    return f"{spelled}: {wrong}" if wrong else ""


@pytest.mark.parametrize(
    ("model", "spelled"),
    [
        ("qwen3_moe", "gguf-q4_k_m"),
        ("gemma2", "gguf-q4_k_m"),
        ("phi3", "bnb-nf4"),
        ("qwen3_moe", "torchao-int8"),
        ("granite", "gptq-int4"),  # gptqmodel's bfloat16 moves it more than its matrices tell
        ("gpt_neox", "awq-int4"),  # whose head gptqmodel looks for under another name
        ("dbrx", "ct-w4a16"),  # attention within what is called a norm
    ],
)
def test_a_few_families(model: str, spelled: str, tmp_path: Path, openers: Openers) -> None:
    assert check(model, spelled, tmp_path, openers) == ""


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
def test_every_family(model: str, tmp_path: Path, openers: Openers) -> None:
    found = [check(model, spelled, tmp_path, openers) for spelled in RECIPES]
    assert not any(found), "\n".join(filter(None, found))
