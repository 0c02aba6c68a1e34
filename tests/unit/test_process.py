"""Children of this program import nothing from the folder in which a person typed the command."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import quantize.process
from quantize.process import child_command, child_environment, isolated_command

ROOT = Path(__file__).resolve().parents[2]
#: modules that the command imports, and one of the standard library
NAMES = ("click", "yaml", "numpy", "quantize", "runpy")


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder with modules that leave a mark when they are imported."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'RAN')!r}, 'a').write({name!r})\nraise SystemExit(7)\n"
        )
    return tmp_path


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**child_environment(), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_a_child_imports_nothing_from_its_working_folder(trap: Path) -> None:
    done = run(child_command("quantize.cli", "--version"), trap)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("quantwright"), done.stdout
    assert not (trap / "RAN").exists()


def test_nor_does_it_where_python_has_no_safe_path_of_its_own(trap: Path) -> None:
    """The command line for Python 3.10, which any later Python understands too."""
    command = [
        sys.executable,
        "-c",
        quantize.process._SAFE_PATH,
        "quantize.process",
        str(os.getpid()),
        "quantize.cli",
        "--version",
    ]
    environment = {name: value for name, value in child_environment().items() if name != "PYTHONSAFEPATH"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, cwd=trap, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("quantwright"), done.stdout
    assert not (trap / "RAN").exists()


def test_a_plain_child_would_have(trap: Path) -> None:
    environment = {name: value for name, value in child_environment().items() if name != "PYTHONSAFEPATH"}
    subprocess.run(
        [sys.executable, "-m", "quantize.cli"], cwd=trap, env=environment, capture_output=True, check=False
    )
    assert (trap / "RAN").exists()


def test_convert_to_several_recipes_runs_nothing_of_the_folder_it_is_in(
    trap: Path, demo_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [*child_command("quantize.cli", "convert", str(demo_checkpoint), "--to", "gguf-q8_0,gguf-bf16")]
    done = run([*command, "--verify", "none", "-o", str(out)], trap)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["gguf-bf16", "gguf-q8_0"]
    assert not (trap / "RAN").exists()


def test_what_a_model_wrote_sees_no_environment_and_no_working_folder(trap: Path) -> None:
    done = run(
        isolated_command(
            "import sys; print('' in sys.path, sys.flags.ignore_environment, sys.flags.no_user_site)"
        ),
        trap,
    )
    assert done.stdout.split() == ["False", "1", "1"]


def test_every_python_child_is_started_by_the_one_module() -> None:
    """Outside it nobody writes down a command line that begins with the interpreter."""
    wrong = []
    for package in ("quantize", "evals", "reports", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            # peers: other programs' own scripts
            if "peers" in path.parts or path == ROOT / "quantize" / "process.py":
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                command = node.elts[0] if isinstance(node, (ast.List, ast.Tuple)) and node.elts else None
                if command is not None and ast.unparse(command) in (
                    "sys.executable",
                    "'python'",
                    "'python3'",
                ):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong, wrong
