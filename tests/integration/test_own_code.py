"""Checkpoints that bring Python: converted without it where none is needed, refused in one line where it is,
run when trusted."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from own_code import copy_with_code, edit, ran

from quantize.artifact.artifact import Artifact
from quantize.conversion import convert
from quantize.errors import Unsupported
from quantize.methods.registry import parse_recipe
from quantize.recipe import CalibrationOptions, RunOptions

AUTO_MAP = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.LlamaForCausalLM"}
TRUST = RunOptions(trust_remote_code=True)


@pytest.fixture(scope="module")
def plain(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(num_hidden_layers=1)


@pytest.fixture
def folder(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its config and its tokenizer name classes of evil.py, which leaves a mark beside the folder."""
    made = copy_with_code(plain, tmp_path, monkeypatch)
    edit(made, "config.json", auto_map=AUTO_MAP)
    edit(
        made,
        "tokenizer_config.json",
        tokenizer_class="LlamaTokenizer",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
    )
    return made


def made(folder: Path, recipe: str, run: RunOptions | None = None, verify: str = "full") -> Artifact:
    calibration = CalibrationOptions(tokens=256, sequence_length=64)
    return convert(
        str(folder),
        parse_recipe(recipe),
        folder.parent / "out",
        calibration=calibration,
        run=run or RunOptions(),
        verify=verify,
    )


@pytest.mark.parametrize("recipe", ["gptq-int4", "gguf-q8_0"])
@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}),
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "some/repo--evil.Model"}}),
        ("tokenizer_config.json", {"tokenizer_class": "Tokenizer"}),
        ("tokenizer_config.json", {"tokenizer_class": "TokenizerFast"}),
    ],
)
def test_another_class_than_the_librarys_is_refused(
    folder: Path, recipe: str, file: str, values: dict[str, object]
) -> None:
    """What its code would compute or split is not what the rest of its files says."""
    edit(folder, file, **values)
    with pytest.raises(Unsupported, match=rf"{file} names the class (Model|Tokenizer) .*--trust-remote-code"):
        made(folder, recipe)
    assert not ran(folder)
    assert not (folder.parent / "out").exists()


def test_names_that_differ_in_case_or_speed_are_the_same_class(folder: Path) -> None:
    """As PhiMoE's PhiMoEForCausalLM, and DeepSeek's fast tokenizer over Llama's."""
    edit(folder, "config.json", auto_map={"AutoModelForCausalLM": "evil.LLaMAForCausalLM"})
    edit(folder, "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast",
         auto_map={"AutoTokenizer": [None, "evil.LlamaTokenizerFast"]})  # fmt: skip
    made(folder, "gguf-q8_0", verify="none")
    assert not ran(folder)


@pytest.mark.parametrize("recipe", ["gptq-int4", "bnb-nf4", "quanto-int8"])
def test_a_known_type_is_converted_without_the_checkpoints_code(folder: Path, recipe: str) -> None:
    artifact = made(folder, recipe, verify="none")
    assert not ran(folder)
    assert not artifact.manifest.source.remote_code
    notes = {note.what for note in artifact.manifest.notes if "--trust-remote-code" in note.why}
    assert notes == {"not used: config.json: auto_map", "not used: tokenizer_config.json: auto_map"}
    assert not list((folder.parent / "out").glob("*.py"))


def test_a_type_of_its_own_becomes_a_gguf_where_a_family_knows_its_architecture(folder: Path) -> None:
    """llama.cpp computes it, and nothing here needs the code: without it, verification goes as far as the
    tensors."""
    edit(folder, "config.json", model_type="evilmodel")
    artifact = made(folder, "gguf-q8_0")
    assert not ran(folder)
    assert (artifact.verified, artifact.manifest.source.remote_code) == ("tensors", False)
    shutil.rmtree(folder.parent / "out")
    trusted = made(folder, "gguf-q8_0", TRUST)
    assert ran(folder)
    assert (trusted.verified, trusted.manifest.source.remote_code) == ("full", True)
    files = {name: file for name, file in artifact.manifest.files.items() if name.endswith(".gguf")}
    assert files == {name: trusted.manifest.files[name] for name in files}


@pytest.mark.parametrize("recipe", ["gptq-int4", "bnb-nf4", "quanto-int8", "bfloat16"])
def test_where_its_code_is_needed_that_is_said(folder: Path, recipe: str) -> None:
    edit(folder, "config.json", model_type="evilmodel")
    with pytest.raises(Unsupported, match=r"evilmodel.*config\.json: auto_map.*--trust-remote-code") as error:
        made(folder, recipe)
    assert "quantwright-folder" not in str(error.value)
    assert not ran(folder)


def test_code_that_is_not_there_is_one_line(folder: Path) -> None:
    """As after a download that left it out."""
    (folder / "evil.py").unlink()
    edit(folder, "config.json", model_type="evilmodel")
    with pytest.raises(Unsupported, match=r"evil\.py"):
        made(folder, "bfloat16", TRUST)


def test_an_adapter_beside_the_weights_is_left_out_and_said(plain: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from evals.measure import measure
    from evals.options import EvalOptions

    beside = tmp_path / "beside"
    shutil.copytree(plain, beside)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(plain), config).save_pretrained(beside)
    assert (beside / "adapter_model.safetensors").is_file()
    said: list[str] = []
    outcome = measure([plain, beside], EvalOptions.of(protocol="llamacpp-128", tokens=300), say=said.append)
    first, second = (row.value for row in outcome.results if row.metric == "perplexity")
    assert first == second
    assert [line for line in said if "adapter" in line] == [
        f"{beside}: the adapter beside the weights is not used (adapters are "
        "used only when named: convert --adapter merges it into the model)"
    ]
    artifact = convert(
        str(beside), parse_recipe("bnb-nf4"), tmp_path / "out", run=RunOptions(), verify="tensors"
    )
    assert "not used: adapter_model.safetensors" in {note.what for note in artifact.manifest.notes}
