"""GPTQ, AWQ and rounding to nearest of every decoder family, verified as a conversion verifies.

With QUANTWRIGHT_PACKED_FAMILIES=docs/families.md in the environment, a long run in which every family passed
writes that page.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from decoder_cases import CASES
from packed_families import WITHOUT, Outcome, page, verified

pytest.importorskip("gptqmodel")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd little configs

RECIPES = {"GPTQ": "gptq-int4", "AWQ": "awq-int4"}
FORMATS = ("rtn-int4", "rtn-int4:format=awq", "rtn-int8")
EVERY = [name for name in CASES if name not in WITHOUT]


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """The runtime's kernels compile their dequantization at the first call: a minute for milliseconds."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[tuple[str, str], Outcome]]:
    found: dict[tuple[str, str], Outcome] = {}
    yield found
    place = os.environ.get("QUANTWRIGHT_PACKED_FAMILIES")
    if place and len(found) == len(EVERY) * len(RECIPES):
        Path(place).write_text(page(found, RECIPES), encoding="utf-8")


@pytest.mark.parametrize(
    ("model_type", "spelled"),
    [
        ("gpt2", "gptq-int4"),
        ("phi3", "awq-int4"),
        ("gpt_oss", "gptq-int3:sym=false"),
        ("qwen3_5_text", "rtn-int4"),
        ("mixtral", "rtn-int8"),
        ("qwen2_moe", "rtn-int4"),
        ("falcon", "rtn-int4:format=awq"),
    ],
)
def test_a_few_families(model_type: str, spelled: str, tmp_path: Path) -> None:
    verified(model_type, spelled, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("model_type", EVERY)
@pytest.mark.parametrize("name", RECIPES)
def test_every_family(
    model_type: str, name: str, tmp_path: Path, seen: dict[tuple[str, str], Outcome]
) -> None:
    seen[model_type, name] = verified(model_type, RECIPES[name], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("model_type", EVERY)
@pytest.mark.parametrize("spelled", FORMATS)
def test_every_family_rounded_to_nearest(model_type: str, spelled: str, tmp_path: Path) -> None:
    verified(model_type, spelled, tmp_path)
