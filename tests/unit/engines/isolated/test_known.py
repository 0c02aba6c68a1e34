"""Locks and workers of the engines that come with this program."""

import ast
import re
import sys
from pathlib import Path

import pytest
import torch

from quantize.commands.env import offer_engines
from quantize.engines.isolated.environment import place_of
from quantize.engines.isolated.known import OURS, IsolatedEngine, isolated_engine
from quantize.errors import BadInput, Unsupported
from quantize.methods.registry import method, parse_recipe
from quantize.verification.named_runtimes import named, why_not

BY_NAME = pytest.mark.parametrize("engine", OURS, ids=lambda engine: engine.name)


@BY_NAME
def test_every_pin_has_a_hash_and_torch_is_not_among_them(engine: IsolatedEngine) -> None:
    pins = re.findall(r"^\S+==\S+ \\\n    --hash=sha256:[0-9a-f]{64}$", engine.lock_text, flags=re.MULTILINE)
    assert len(pins) == len(engine.pins) > 10
    assert engine.label == f"{engine.distribution} {engine.pins[engine.distribution]}"
    assert not {"torch", "triton"} & set(engine.pins)
    assert not [name for name in engine.pins if name.startswith("nvidia-c")]


@BY_NAME
def test_a_worker_imports_its_engine_and_the_standard_library(engine: IsolatedEngine) -> None:
    tree = ast.parse(engine.worker.read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module
            imported.add(node.module.partition(".")[0])
    known = {"torch", "awq", "vllm", *(name.replace("-", "_").replace(".", "_") for name in engine.pins)}
    assert imported - set(sys.stdlib_module_names) <= known


def test_the_key_holds_what_decides(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("QUANTWRIGHT_ENVIRONMENTS", str(tmp_path))
    engine = OURS[0]
    here = place_of(engine)
    assert here == place_of(engine)
    assert here.parent == tmp_path
    monkeypatch.setattr("platform.machine", lambda: "another")
    assert place_of(engine) != here


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_needs_a_gpu_is_refused_before_anything_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QUANTWRIGHT_ENVIRONMENTS", str(tmp_path))
    recipe = parse_recipe("gptq-int4:engine=auto-gptq")
    with pytest.raises(Unsupported, match=r"auto_gptq 0\.7\.1 quantizes on a CUDA GPU only"):
        offer_engines([recipe], yes=True)
    assert not list(tmp_path.iterdir())


def test_verify_names_the_command_that_installs_a_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QUANTWRIGHT_ENVIRONMENTS", str(tmp_path))
    assert named("AutoGPTQ") == "auto-gptq"
    why = why_not("auto-gptq", tmp_path, False, "gptq", None, True)
    assert why == "auto-gptq is not installed; install with: quantwright env install auto-gptq"


def test_unknown_engines_are_named() -> None:
    with pytest.raises(BadInput, match="did you mean auto-round"):
        isolated_engine("auto-rond")


@pytest.mark.parametrize(
    ("short", "needs"),
    [
        ("gptq-int4", ""),
        ("gptq-int4:engine=gptqmodel", ""),
        ("gptq-int4:engine=auto-round,iterations=5", "auto-round"),
        ("awq-int4:engine=auto-round", "auto-round"),
        ("rtn-int4:engine=auto-round", "auto-round"),
        ("awq-int4:engine=autoawq", "autoawq"),
        ("gptq-int4:engine=auto-gptq", "auto-gptq"),
        ("ct-w4a16:by=gptq", ""),
        ("ct-w4a16:by=gptq,engine=llm-compressor", "llm-compressor"),
    ],
)
def test_recipes_say_which_environment_they_need(short: str, needs: str) -> None:
    recipe = parse_recipe(short)
    assert recipe.short == short
    assert method(recipe.method).environment(recipe) == needs


@pytest.mark.parametrize(
    ("short", "why"),
    [
        ("gptq-int4:iterations=5", "iterations needs engine=auto-round"),
        ("awq-int4:iterations=5", "iterations needs engine=auto-round"),
        ("gptq-int4:engine=auto-round,desc_act=true", "engine=auto-round has neither"),
        ("gptq-int4:engine=auto-gptq,iterations=5", "iterations needs engine=auto-round"),
        ("gptq-int4:engine=auto-round,refinements=1", "needs engine=native"),
        ("rtn-int4:engine=auto-round,search=false", "search needs engine=native"),
        ("ct-w4a16:by=awq,engine=llm-compressor", "by=awq is not asked of llm-compressor"),
        ("ct-nvfp4:engine=llm-compressor", "nvfp4 is not asked of llm-compressor"),
    ],
)
def test_what_an_engine_does_not_have_is_refused(short: str, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        parse_recipe(short)
