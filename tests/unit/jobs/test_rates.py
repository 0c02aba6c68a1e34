"""What a plan says from earlier steps of this machine."""

from pathlib import Path

import pytest

from jobs.estimate import estimate_plan
from jobs.load import load_job
from jobs.plan import build_plan
from jobs.rates import BUILT_IN, MARGIN, UNSURE, Sample, estimate_seconds
from quantize.methods.registry import method


@pytest.mark.parametrize("kind", ["convert:gguf", "convert:gguf:none", "eval:gptq", "bench:gptq"])
def test_a_machine_that_has_done_nothing_takes_built_in_rates(kind: str) -> None:
    costs = method("gguf").costs
    own = (costs.start_s, costs.seconds) if kind.startswith("convert:") else None
    fixed, rate = own or BUILT_IN[kind.partition(":")[0]]
    found = estimate_seconds(kind, 100.0, 2, [], own)
    assert (found.low_s, found.high_s) == pytest.approx(
        ((fixed + 100 * rate) / UNSURE, (fixed + 100 * rate) * UNSURE)
    )
    assert "built-in" in found.source


def test_an_earlier_step_gives_time_within_a_margin() -> None:
    found = estimate_seconds(
        "eval:gptq", 4.2, 2, [Sample("eval:gptq", 4.2, 10.0, 1, 2), Sample("eval:dense", 4.2, 99.0, 1, 2)]
    )
    assert (found.low_s, found.high_s) == pytest.approx((10 / MARGIN, 10 * MARGIN))


def test_conversions_without_verification_say_nothing_of_those_with_it(
    tmp_path: Path, demo_checkpoint: Path
) -> None:
    """Verifying takes most of the memory, and of a small model's time."""
    job = tmp_path / "job.yaml"
    job.write_text(f"models: [{demo_checkpoint}]\nrecipes: [gguf-q8_0]\n", encoding="utf-8")
    plain = [Sample("convert:gguf:none", 4.2, 1.0, 80_000_000, 2)]
    full, none = (
        estimate_plan(loaded, build_plan(loaded, tmp_path), tmp_path / "run", plain).steps[
            "convert:checkpoint:gguf-q8_0"
        ]
        for loaded in (load_job(job), load_job(job, ["verify=none"]))
    )
    assert none.memory_bytes == 84_000_000
    assert full.memory_bytes > 400_000_000
    assert "built-in" in full.time.source
    assert "earlier step" in none.time.source
