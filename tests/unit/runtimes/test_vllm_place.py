"""Which Python has vLLM."""

import sys
from pathlib import Path

import pytest

from quantize.errors import BadInput, Unsupported
from quantize.runtimes.vllm_place import needed_vllm, vllm_place


@pytest.fixture(autouse=True)
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUANTWRIGHT_VLLM", raising=False)
    monkeypatch.setenv("QUANTWRIGHT_ENVIRONMENTS", str(tmp_path / "environments"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))


def program(path: Path, first_line: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{first_line}\n")
    path.chmod(0o755)
    return path


def test_none_is_said_with_what_to_do() -> None:
    assert vllm_place() is None
    with pytest.raises(
        Unsupported, match=r"^x: vLLM .*`?quantwright env install vllm; or set QUANTWRIGHT_VLLM"
    ):
        needed_vllm("x")
    with pytest.raises(Unsupported) as raised:
        needed_vllm("x", gpu=True)
    assert "env install" not in str(raised.value)  # its build is for processors


def test_the_program_on_the_path_names_its_python(tmp_path: Path) -> None:
    program(tmp_path / "path" / "vllm", f"#!{sys.executable}")
    found = vllm_place()
    assert found is not None
    assert (found.python, found.environment) == (Path(sys.executable), None)


def test_a_program_of_another_kind_has_its_python_beside_it(tmp_path: Path) -> None:
    program(tmp_path / "path" / "vllm", "#!/bin/sh")
    assert vllm_place() is None
    beside = program(tmp_path / "path" / "python", "#!/bin/sh")
    found = vllm_place()
    assert found is not None
    assert found.python == beside
    assert found.program == tmp_path / "path" / "vllm"


@pytest.mark.parametrize("named", ["", "bin", "bin/python", "bin/vllm"])
def test_the_variable_names_an_environment_or_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    python = program(tmp_path / "own" / "bin" / "python", "#!/bin/sh")
    program(tmp_path / "own" / "bin" / "vllm", f"#!{python}")
    program(tmp_path / "path" / "vllm", f"#!{sys.executable}")
    monkeypatch.setenv("QUANTWRIGHT_VLLM", str(tmp_path / "own" / named))
    found = vllm_place()
    assert found is not None
    assert (found.python, found.whose) == (python, "QUANTWRIGHT_VLLM")


def test_a_variable_that_names_nothing_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTWRIGHT_VLLM", str(tmp_path / "none"))
    with pytest.raises(BadInput, match="names no Python"):
        vllm_place()
