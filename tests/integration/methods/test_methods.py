"""What every recipe in the registry must do, whichever method it belongs to: run over all of them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from quantize import Artifact, convert
from quantize.artifact.artifact import MANIFEST
from quantize.engines.native.layers import VERSION
from quantize.methods.registry import METHODS, method, parse_recipe, plan, presets
from quantize.numerics.rtn import VERSION as ROUNDING
from quantize.sources.opening import open_checkpoint

# One recipe of each family goes through the whole conversion here; the others have tests of their own beside
# their method.
FAMILIES = ["bfloat16", "gguf-q4_k_m", "quanto-int8", "bnb-nf4", "torchao-int8", "ct-fp8-dynamic"]
CALIBRATED = ["gptq-int4", "awq-int4"]


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()


@pytest.mark.parametrize("short", sorted(presets()))
def test_spellings_round_trip(short: str) -> None:
    recipe = parse_recipe(short)
    assert parse_recipe(recipe.short) == recipe
    assert parse_recipe(recipe.canonical) == recipe
    assert parse_recipe(recipe.short).digest == recipe.digest
    assert recipe.slug == Path(recipe.slug).name


@pytest.mark.parametrize("name", METHODS)
def test_presets_differ(name: str) -> None:
    digests = [parse_recipe(short).digest for short in method(name).recipe_class.presets]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("short", FAMILIES + CALIBRATED)
def test_whole_conversion(short: str, checkpoint: Path, tmp_path: Path) -> None:
    artifact = convert(checkpoint, short, tmp_path / "one")
    again = Artifact.load(tmp_path / "one")
    again.check_files()
    assert again.digest == artifact.digest
    verification = again.manifest.verification
    assert verification.level == "full"
    assert verification.passed
    assert any(check.tolerance is not None and check.value is not None for check in verification.checks)
    assert {path.name for path in tmp_path.iterdir()} == {"one"}
    assert MANIFEST not in again.manifest.files
    tokenizer = (checkpoint / "tokenizer.json").read_bytes()
    if method(parse_recipe(short).method).format.hf_folder:
        assert (tmp_path / "one" / "tokenizer.json").read_bytes() == tokenizer
    text = json.dumps(json.loads((tmp_path / "one" / MANIFEST).read_text()))
    assert str(tmp_path / "one") not in text


@pytest.mark.parametrize("short", FAMILIES + CALIBRATED)
def test_same_checkpoint_and_recipe_give_the_same_bytes(short: str, checkpoint: Path, tmp_path: Path) -> None:
    first = convert(checkpoint, short, tmp_path / "one", verify="none")
    second = convert(checkpoint, short, tmp_path / "two", verify="none")
    assert first.manifest.files == second.manifest.files
    assert first.digest == second.digest


@pytest.mark.parametrize(
    ("short", "engine"),
    [
        ("rtn-int4", f"rounding {ROUNDING}"), ("ct-w4a16", f"rounding {ROUNDING}"),
        ("gptq-int4", f"native {VERSION}"), ("ct-w4a16:by=gptq", f"native {VERSION}"), ("ct-fp8-dynamic", ""),
    ],
)  # fmt: skip
def test_a_step_of_a_job_knows_what_makes_its_codes(short: str, engine: str, checkpoint: Path) -> None:
    """A job makes again what other arithmetic would make otherwise."""
    assert plan(open_checkpoint(checkpoint), parse_recipe(short)).engine == engine


def test_a_damaged_file_is_noticed(checkpoint: Path, tmp_path: Path) -> None:
    from quantize.errors import BadInput

    artifact = convert(checkpoint, "bfloat16", tmp_path / "one", verify="none")
    path = tmp_path / "one" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInput, match="does not match its sha256"):
        artifact.check_files()


def test_pre_tokenizer_is_an_option_of_convert(checkpoint: Path, tmp_path: Path) -> None:
    from quantize.cli import cli
    from quantize.errors import BadInput

    arguments = [
        "convert",
        str(checkpoint),
        "-o",
        str(tmp_path / "one"),
        "--verify",
        "none",
        "--pre-tokenizer",
        "qwen2",
    ]
    with pytest.raises(BadInput, match="is only for GGUF recipes"):
        cli.main([*arguments, "--to", "bfloat16"], standalone_mode=False)
    assert not cli.main([*arguments, "--to", "gguf-q8_0"], standalone_mode=False)
    manifest = Artifact.load(tmp_path / "one").manifest
    assert manifest.recipe["pre_tokenizer"] == "qwen2"
    assert any("--pre-tokenizer" in note.why for note in manifest.notes)


def test_layers_that_bitsandbytes_computes_wrongly_on_some_cpus_are_named(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """``dequantize_flat`` tells of the fault. Of these layers, down_proj alone has rows of whole blocks."""
    source = make_checkpoint(hidden_size=96, intermediate_size=128, num_hidden_layers=1)
    notes = [n for n in convert(source, "bnb-nf4", tmp_path / "one").manifest.notes if "cross rows" in n.what]
    assert {note.what for note in notes} == {"blocks of 64 that cross rows of 96"}
    assert sorted(n.tensor.split(".")[-2] for n in notes) == [
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]
    assert not any(
        "cross rows" in n.what
        for n in convert(source, "bnb-int8", tmp_path / "two", verify="none").manifest.notes
    )
