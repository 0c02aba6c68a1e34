"""The engines themselves, where they are installed: what they make of the demo verifies and is no worse than
rounding costs."""

from pathlib import Path

import pytest

from quantize.conversion import convert
from quantize.engines.isolated.environment import installed
from quantize.engines.isolated.known import isolated_engine
from quantize.methods.registry import method, parse_recipe
from quantize.recipe import CalibrationOptions, RunOptions
from quantize.verification.across_runtimes import verify_anywhere

pytestmark = pytest.mark.long
TEXT = CalibrationOptions(source="stdlib", tokens=2048, sequence_length=128)
BY_LLM_COMPRESSOR = (
    "fp8-dynamic", "fp8-block", "int8", "w8a16", "w4a16", "nvfp4a16", "mxfp4a16", "mxfp4",
)  # fmt: skip
RUN = RunOptions(device="cpu", progress=False)


def test_auto_gptq_reads_what_is_written(demo_checkpoint: Path, tmp_path: Path) -> None:
    """The loader that defined the format: its logits, in float32, are those of this program's reading."""
    if installed(isolated_engine("auto-gptq")) is None:
        pytest.skip(f"auto-gptq is not installed: {isolated_engine('auto-gptq').install_command}")
    convert(demo_checkpoint, "rtn-int4", tmp_path / "out", verify="none", run=RUN)
    report = verify_anywhere(str(tmp_path / "out"), str(demo_checkpoint), ["auto-gptq"], RUN)
    (ran,) = report.runtimes
    assert (ran.status, ran.version) == ("agrees", "0.7.1")
    assert ran.kl is not None
    assert ran.kl < 1e-6
    assert len(ran.ids) == 24


@pytest.mark.parametrize(
    "short",
    [
        "rtn-int4:engine=auto-round",
        "rtn-int2:group_size=32,engine=auto-round",
        "rtn-int4:format=awq,sym=false,engine=auto-round",
        "gptq-int4:engine=auto-round,iterations=4",
        "awq-int4:engine=auto-round,iterations=4",
        "awq-int4:engine=autoawq",
        "ct-w4a16:by=gptq,engine=llm-compressor",
        *(f"ct-{scheme}:engine=llm-compressor" for scheme in BY_LLM_COMPRESSOR),
    ],
)
def test_what_an_engine_makes_is_verified(short: str, demo_checkpoint: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(short)
    engine = isolated_engine(method(recipe.method).environment(recipe))
    if installed(engine) is None:
        pytest.skip(f"{engine.name} is not installed: {engine.install_command}")
    artifact = convert(demo_checkpoint, recipe, tmp_path / "out", calibration=TEXT, run=RUN)
    manifest = artifact.manifest
    assert manifest.verification.level == "full"
    assert manifest.verification.passed
    assert manifest.engine == engine.label
    assert manifest.details["environment"]["versions"][engine.distribution] == engine.version
    error = next(check for check in manifest.verification.checks if check.name == "weight error")
    assert error.value is not None
    # AWQ's scales move error to weights that matter little: .163 seen of AutoAWQ, .114 of awq-int4
    assert error.value < (0.7 if "int2" in short else 0.2 if "autoawq" in short else 0.15)
