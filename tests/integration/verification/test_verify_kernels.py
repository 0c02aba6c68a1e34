"""Kernels that round a lot are not taken for damage where those that compute in float32 agree with the
file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantize import convert
from quantize.calibration.windows import load_calibration
from quantize.methods.base import Work
from quantize.methods.registry import parse_recipe, plan
from quantize.recipe import CalibrationOptions, RunOptions
from quantize.runtimes.base import Consume
from quantize.sources.opening import open_checkpoint
from quantize.verification.logits import compare_logits, fixed_rows
from quantize.verification.process import Opened
from quantize.verification.reference import KL_SLOW_KERNELS, Served
from quantize.verification.weights import check_weights
from tests.packed_families import TOKENIZER

pytest.importorskip("gptqmodel")

CPU = RunOptions(device="cpu", progress=False)


class Coarse:
    """A runtime whose kernels round more: noise on its logits, of which the mean divergence is
    ``size`` ** 2 / 2."""

    def __init__(self, runtime: Served, size: float):
        self._runtime, self._size, self.vocabulary = runtime, size, runtime.vocabulary

    def logits(self, rows: np.ndarray, first: int, consume: Consume) -> None:
        random = np.random.default_rng(0)

        def add(row: int, begin: int, logits: np.ndarray) -> None:
            noise = self._size * random.standard_normal(logits.shape)
            consume(row, begin, (logits + noise).astype(np.float32))

        self._runtime.logits(rows, first, add)


@pytest.fixture(scope="module", params=["rtn-int4:group_size=32", "awq-int4:group_size=32"])
def made(
    request: pytest.FixtureRequest,
    make_checkpoint: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Work, Path, Callable[[Served, Callable[[], Served] | None], bool]]:
    """What is to be made, where it was, and whether a runtime's logits pass."""
    checkpoint = open_checkpoint(make_checkpoint())
    work = plan(checkpoint, parse_recipe(request.param))
    stage, spill = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("spill")
    text = load_calibration(checkpoint, CalibrationOptions(tokens=512, sequence_length=64), CPU)
    conversion = work.write(stage, CPU, text)
    for name in TOKENIZER:
        (stage / name).write_bytes((checkpoint.folder / name).read_bytes())
    weights = check_weights(work, stage, conversion, spill)
    assert weights.spill is not None
    read, rows = weights.spill.read, fixed_rows(checkpoint, 64)

    def passes(runtime: Served, again: Callable[[], Served] | None) -> bool:
        checks, _ = compare_logits(work, stage, read, frozenset(weights.extra), runtime, rows, again)
        return next(check for check in checks if check.name == "logits").passed

    return work, stage, passes


def test_asked_for_float32_they_give_the_files_logits(
    made: tuple[Work, Path, Callable[[Served, Callable[[], Served] | None], bool]], tmp_path: Path
) -> None:
    work, stage, passes = made
    rows = fixed_rows(work.checkpoint, 64)
    for folder in (tmp_path / "fast", tmp_path / "slow"):
        folder.mkdir()
    fast = Opened(stage, CPU, rows, tmp_path / "fast", exact=False)
    slow = Opened(stage, CPU, rows, tmp_path / "slow")
    assert passes(fast, None)
    assert (tmp_path / "fast" / "logits.f32").read_bytes() != (tmp_path / "slow" / "logits.f32").read_bytes()
    assert not passes(Coarse(slow, 0.1), None)  # 5e-3
    assert passes(Coarse(slow, 0.1), lambda: slow)
    assert not passes(Coarse(slow, 0.1), lambda: Coarse(slow, 0.01))  # 5e-5
    assert not passes(Coarse(slow, 1.0), lambda: slow)  # 0.5: wrong, not coarse
    assert KL_SLOW_KERNELS < 0.01**2 / 2


def test_the_dtype_of_a_conversion_is_not_that_of_its_verification(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """What bfloat16 rounds, kernels that are asked for float32 would seem to have wrong."""
    run = CPU.model_copy(update={"dtype": "bfloat16"})
    text = CalibrationOptions(tokens=512, sequence_length=64)
    made = convert(
        make_checkpoint(), "awq-int4:group_size=32", tmp_path / "out", run=run, calibration=text
    ).manifest
    assert made.details["compute_dtype"] == "bfloat16"
    opened = next(check.detail for check in made.verification.checks if check.name == "opens")
    assert "float32" in opened
