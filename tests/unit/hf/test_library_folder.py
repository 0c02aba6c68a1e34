"""Nothing of a stranger's runs: what libraries get to see of a folder, and what stops them where that is not
enough."""

import ast
import builtins
import contextlib
import importlib.util
import json
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from own_code import copy_with_code, edit, ran

from quantize.checkpoint.library_folder import library_folder, names_code, without_code
from quantize.code_guard import no_code_from
from quantize.errors import QuantwrightError, Unsupported
from quantize.hf.load import load_model
from quantize.recipe import RunOptions
from quantize.runtimes.transformers import TransformersRuntime

ROOT = Path(__file__).resolve().parents[3]
AUTO_MAP = {
    "AutoConfig": "evil.Config",
    "AutoModelForCausalLM": "evil.Model",
    "AutoTokenizer": ["evil.Tokenizer", None],
}


@pytest.fixture(scope="module")
def plain(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(hidden_size=64, intermediate_size=64, num_hidden_layers=1)


@pytest.fixture
def folder(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a small checkpoint, with evil.py in it, which leaves a mark beside it. Its dynamic-module
    cache is its own."""
    return copy_with_code(plain, tmp_path, monkeypatch)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(20)[None]).logits


#: file -> what is written into it; each names code in a way that some library follows
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("config.json", {"auto_map": AUTO_MAP}),
    ("config.json", {"auto_map": {"AutoConfig": "other/repo--evil.Config"}}),
    ("config.json", {"text_config": {"auto_map": AUTO_MAP}}),
    ("config.json", {"attn_implementation": "someone/kernel"}),
    ("config.json", {"_attn_implementation": {"text": "paged|someone/kernel:flash"}}),
    ("config.json", {"experts_implementation": "deepgemm"}),
    ("config.json", {"custom_pipelines": {"evil": {"impl": "evil.Pipeline"}}}),
    ("config.json", {"trust_remote_code": True}),
    ("config.json", {"quantization_config": {"quant_method": "gptq", "use_kernels": True}}),
    ("generation_config.json", {"custom_generate": "someone/repo"}),
    ("tokenizer_config.json", {"auto_map": AUTO_MAP}),
    ("tokenizer_config.json", {"auto_map": ["evil.Tokenizer", None]}),
    ("tokenizer_config.json", {"tokenizer_class": "evil.Tokenizer"}),
    (
        "processor_config.json",
        {"processor_class": "other/repo--evil.P", "image_processor": {"auto_map": AUTO_MAP}},
    ),
    ("preprocessor_config.json", {"image_processor_type": "evil.P"}),
]


@pytest.mark.parametrize(
    ("name", "values"), WAYS, ids=[f"{name}: {next(iter(values))}" for name, values in WAYS]
)
def test_no_way_to_code_is_left_in_what_a_library_sees(
    plain: Path, tmp_path: Path, name: str, values: dict[str, Any]
) -> None:
    made = tmp_path / "model"
    shutil.copytree(plain, made)
    edit(made, name, **values, kept=[1, {"two": "three"}])
    before = (made / name).read_bytes()
    assert any(what.startswith(f"{name}: ") for what in names_code(made))
    with library_folder(made, False) as seen:
        assert seen != made
        left: list[str] = []
        without_code(json.loads((seen / name).read_text()), left)
        assert left == []
        assert json.loads((seen / name).read_text())["kept"] == [1, {"two": "three"}]
        assert (seen / "model.safetensors").resolve() == made / "model.safetensors"
    assert not seen.exists()
    assert (made / name).read_bytes() == before
    with library_folder(made, True) as seen:
        assert seen == made


def test_code_and_pickles_are_not_seen_and_a_plain_folder_is_itself(plain: Path, tmp_path: Path) -> None:
    made = tmp_path / "model"
    shutil.copytree(plain, made)
    with library_folder(made, False) as seen:
        assert seen == made
    for name in ("evil.py", "pytorch_model.bin", "kernel.so"):
        (made / name).write_text("")
    (made / "custom_generate").mkdir()
    (made / "custom_generate" / "generate.py").write_text("")
    with library_folder(made, False) as seen:
        assert {path.name for path in seen.iterdir()} == {path.name for path in plain.iterdir()}
    with library_folder(made, False, always=True) as seen:
        assert seen.name == "model"


def test_names_that_are_nobodys_code_stay(plain: Path, tmp_path: Path) -> None:
    made = tmp_path / "model"
    shutil.copytree(plain, made)
    edit(made, "config.json", attn_implementation="sdpa", auto_map=None, _attn_implementation_autoset=True)
    edit(made, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", processor_class=None)
    assert names_code(made) == []


def test_a_checkpoints_own_class_runs_only_where_it_is_trusted(folder: Path, plain: Path) -> None:
    """Of a type that transformers knows: without trust its own class loads the weights."""
    edit(folder, "config.json", auto_map=AUTO_MAP)
    model = load_model(folder, "float32", "cpu")
    assert not ran(folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.name_or_path == str(folder)
    expected = logits(load_model(plain, "float32", "cpu"))
    assert torch.equal(logits(model), expected)
    trusted = load_model(folder, "float32", "cpu", trust_remote_code=True)
    assert ran(folder)
    assert type(trusted).__name__ == "Model"
    assert torch.equal(logits(trusted), expected)


@pytest.mark.parametrize("quanto", [False, True])
def test_a_type_of_the_checkpoints_own_is_refused_in_one_line(
    folder: Path, quanto: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With quanto's file beside it transformers asked, unseen, whether to run the code."""
    monkeypatch.setattr(builtins, "input", lambda prompt="": "y")
    edit(folder, "config.json", auto_map=AUTO_MAP, model_type="evilmodel")
    if quanto:
        (folder / "quanto_qmap.json").write_text("{}")
    with pytest.raises(Unsupported, match=r"auto_map.*--trust-remote-code") as error:
        TransformersRuntime(folder, RunOptions())
    assert not ran(folder)
    assert "quantwright-folder" not in str(error.value)
    if not quanto:
        with TransformersRuntime(folder, RunOptions(trust_remote_code=True)) as runtime:
            assert type(runtime.model).__name__ == "Model"


def test_a_library_that_trusts_by_itself_finds_nothing(folder: Path) -> None:
    """tokenicer, which GPTQModel opens tokenizers with, tries again with trust_remote_code=True where it was
    refused."""
    from tokenicer import Tokenicer

    edit(
        folder,
        "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
        tokenizer_class="E",
    )
    with library_folder(folder, False) as seen, contextlib.suppress(ValueError):
        Tokenicer.load(str(seen), trust_remote_code=False)
    assert not ran(folder)
    with (
        pytest.raises(Unsupported, match=r"evil\.py was about to be executed.*--trust-remote-code"),
        library_folder(folder, False),
    ):
        # where the folder is not the cleaned one: the guard
        Tokenicer.load(str(folder), trust_remote_code=False)
    assert not ran(folder)
    with library_folder(folder, True) as seen:
        Tokenicer.load(str(seen), trust_remote_code=False)
    assert ran(folder)


def run_file(path: Path) -> None:
    spec = importlib.util.spec_from_file_location("stranger", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_the_guard_ends_the_step_whatever_a_library_makes_of_it(folder: Path) -> None:
    said = r"^small: code of .*evil\.py was about to be executed; .*--trust-remote-code$"
    seen = library_folder(folder, False, source="small")
    with pytest.raises(Unsupported, match=said), seen, contextlib.suppress(Exception):
        run_file(folder / "evil.py")
    link = folder.parent / "link.py"
    link.symlink_to(folder / "evil.py")
    for path in (folder / "evil.py", link):  # afterwards too: some code is imported when a model first runs
        with pytest.raises(Unsupported, match="--trust-remote-code"):
            run_file(path)
    assert not ran(folder)
    with library_folder(folder, True):
        run_file(folder / "evil.py")
    assert ran(folder)


def test_a_shared_library_of_the_folder_is_not_loaded(folder: Path) -> None:
    import ctypes

    shutil.copy(importlib.util.find_spec("_ctypes").origin, folder / "kernel.so")  # type: ignore[union-attr, arg-type]
    with (
        pytest.raises(Unsupported, match=r"kernel\.so was about to be loaded"),
        library_folder(folder, False),
    ):
        ctypes.CDLL(str(folder / "kernel.so"))


def test_nobody_is_asked_anything(folder: Path) -> None:
    said = "about to ask on the terminal"
    with (
        pytest.raises(Unsupported, match=said),
        library_folder(folder, False),
        contextlib.suppress(QuantwrightError),
    ):
        builtins.input("run it? ")


def test_an_environment_inside_the_folder_is_no_code_of_its(tmp_path: Path) -> None:
    """``eval .`` where the folder is a project's own, with its virtual environment in it."""
    (tmp_path / "a.py").write_text("import os\n")
    everywhere = Path("/")
    with no_code_from(everywhere, whose="", advice=""):
        run_file(Path(sysconfig.get_path("purelib")) / "typing_extensions.py")
    with pytest.raises(Unsupported):
        run_file(tmp_path / "a.py")
    with no_code_from(everywhere, whose="", advice="", trusted=True):
        run_file(tmp_path / "a.py")


def test_an_adapter_beside_the_weights_is_not_applied(folder: Path, plain: Path) -> None:
    from peft import LoraConfig, get_peft_model

    (folder / "evil.py").unlink()
    torch.manual_seed(0)
    adapted = get_peft_model(
        load_model(plain, "float32", "cpu"),
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
    )
    adapted.save_pretrained(folder)
    assert (folder / "adapter_config.json").is_file()
    expected = logits(load_model(plain, "float32", "cpu"))
    assert not torch.equal(logits(adapted), expected)
    for trust in (False, True):
        assert torch.equal(logits(load_model(folder, "float32", "cpu", trust_remote_code=trust)), expected)


def test_every_library_is_told_whether_code_is_trusted() -> None:
    """No ``from_pretrained`` or ``from_config`` of ours leaves that to a library, which may ask on the
    terminal."""
    wrong = []
    for path in sorted((ROOT / "quantize").rglob("*.py")) + sorted((ROOT / "evals").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            # None: a mapping of them
            told = any(word.arg in ("trust_remote_code", None) for word in node.keywords)
            if node.func.attr in ("from_pretrained", "from_config") and not told:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong, wrong
