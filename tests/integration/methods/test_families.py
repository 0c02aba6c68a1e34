"""Every decoder family by every method: what `check` says, what a conversion does, verified as one verifies.

With QUANTWRIGHT_FAMILIES=docs/families.md in the environment, a long run in which no cell failed writes that
page. With QUANTWRIGHT_FAMILY_CELLS=FOLDER it keeps what it finds in FOLDER and does not do it again, so that
the page may be made in several runs (`-k`).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from decoder_cases import CASES
from families_page import page
from family_cells import MODELS, Kept, Openers, make_source, run_cell, run_row

for library in ("gptqmodel", "optimum.quanto", "bitsandbytes", "llama_cpp"):
    pytest.importorskip(library)
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd little configs

FORMATS = ("rtn-int4", "rtn-int4:format=awq", "rtn-int8")


@pytest.fixture(scope="module")
def openers() -> Iterator[Openers]:
    made = Openers()
    yield made
    made.close()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    folder = os.environ.get("QUANTWRIGHT_FAMILY_CELLS")
    return Kept(Path(folder) if folder else tmp_path_factory.mktemp("cells"))


@pytest.mark.parametrize(
    ("model", "spelled"),
    [
        ("gpt2", "gptq-int4"),
        ("phi3", "awq-int4"),
        ("olmo2", "gguf-q4_k_m"),
        ("deepseek_v3", "bnb-int8"),  # layers that are given four axes
        ("longcat_flash", "bnb-nf4"),  # a router that reads the weight of a layer
        ("gemma2", "bfloat16"),
        ("gpt_oss", "gptq-int3:sym=false"),
        ("qwen3_5_text", "rtn-int4"),
        ("mixtral", "rtn-int8"),
        ("qwen2_moe", "rtn-int4"),
        ("falcon", "rtn-int4:format=awq"),
    ],
)
def test_a_few_families(model: str, spelled: str, tmp_path: Path, openers: Openers) -> None:
    cell = run_cell(make_source(model, tmp_path / "source"), spelled, tmp_path / "cell", openers)
    assert cell.kl is not None, cell


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
def test_every_family(model: str, tmp_path: Path, openers: Openers, kept: Kept) -> None:
    row = run_row(model, tmp_path, openers, kept)
    failed = {name: cell.failed for name, cell in row.items() if cell.failed}
    assert not failed
    place = os.environ.get("QUANTWRIGHT_FAMILIES")
    rows = {name: kept.read(name) for name in MODELS} if place and model == MODELS[-1] else {}
    if place and rows and all(rows.values()):
        Path(place).write_text(page(rows), encoding="utf-8")


@pytest.mark.long
@pytest.mark.parametrize("model", CASES)
@pytest.mark.parametrize("spelled", FORMATS)
def test_every_family_rounded_to_nearest(model: str, spelled: str, tmp_path: Path, openers: Openers) -> None:
    cell = run_cell(make_source(model, tmp_path / "source"), spelled, tmp_path / "cell", openers)
    assert cell.kl is not None, cell
