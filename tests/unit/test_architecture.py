"""Which way dependencies point, what importing costs, and what the wheel holds."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("quantize", "evals", "benchmarks", "reports")
# importer -> what it may import of ours. Commands reach other packages by lazy string or command line only.
ALLOWED = {
    "reports": (
        "reports", "quantize.results", "evals.statistics", "quantize.artifact.artifact",
        "quantize.artifact.attestation", "quantize.errors",
        "quantize.commands.options",
        "quantize.files", "quantize.packages", "quantize.staging", "quantize.terminal",
    ),
    "benchmarks": (
        "quantize.files", "quantize.packages", "quantize.staging", "quantize.terminal",
        "benchmarks", "quantize.results", "quantize.artifact.artifact", "quantize.runtimes.base",
        "quantize.errors", "quantize.recipe",
        "quantize.checkpoint.checkpoint", "quantize.commands.options", "quantize.process",
        "quantize.calibration.texts", "evals.subjects",
        "quantize.gguf.container.files", "quantize.gguf.container.reader", "quantize.sources.gguf_repository",
        "jobs",
    ),
    "evals": (
        "quantize.code_guard", "quantize.artifact.file_hashes", "quantize.files", "quantize.packages",
        "quantize.staging",
        "quantize.terminal",
        "evals", "quantize.artifact.artifact", "quantize.checkpoint.checkpoint", "quantize.recipe",
        "quantize.runtimes.base", "quantize.errors",
        "quantize.checkpoint.tokenizer", "quantize.calibration.texts", "quantize.commands.options",
        "quantize.conversion", "quantize.sources.hub", "quantize.process",
        "quantize.methods.registry", "quantize.gguf.container.files", "quantize.gguf.container.reader",
        "quantize.gguf.families",
        "quantize.gguf.tokenizer.chat_templates", "quantize.sources.gguf_repository", "quantize.chat",
        "quantize.documents",
    ),
    "quantize": ("quantize",),
}  # fmt: skip


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module in PACKAGES else set()
            )
    return {name for name in found if name.split(".")[0] in PACKAGES}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_arrow_points_back(package: str) -> None:
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        if "peers" in path.parts:  # scripts that measure this program against others, from outside
            continue
        for name in imports(path):
            bare = name in PACKAGES or any(name == a or name.startswith(a + ".") for a in ALLOWED[package])
            if not bare:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_numerics_know_only_arrays() -> None:
    for path in (ROOT / "quantize" / "numerics").rglob("*.py"):
        outside = {
            n
            for n in imports(path)
            if not n.startswith("quantize.numerics") and n not in ("quantize", "quantize.errors")
        }
        assert not outside, f"{path.name} imports {outside}"


def loaded_by(code: str) -> set[str]:
    probe = (
        f"import sys\n{code}\nprint(*sorted(m for m in ('torch', 'transformers', 'llama_cpp', "
        "'gptqmodel') if m in sys.modules))"
    )
    return set(
        subprocess.run(
            [sys.executable, "-c", probe], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_help_imports_nothing_heavy() -> None:
    assert (
        loaded_by("from quantize.cli import cli; cli.main(['--help'], standalone_mode=False)")
        & {"torch", "transformers"}
        == set()
    )


def test_listing_methods_imports_nothing_heavy() -> None:
    assert loaded_by("from quantize.methods.registry import presets; presets()") == set()


def test_reports_never_import_torch() -> None:
    assert loaded_by("import reports, reports.command") == set()


def test_wheel_holds_the_four_packages_and_the_demo(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {*PACKAGES, "demo"}
    assert "demo/checkpoint/model.safetensors" in names
    assert "demo/job.yaml" in names
    assert "quantize/constraints.txt" in names  # hints name it
