"""Which way dependencies point, what importing costs, and what the wheel holds."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from house import PACKAGES, ROOT, Arrow, arrows, circles, modules

#: From the ground up; a module imports from its own line or below. What stands in no room is the ground.
LAYERS = (
    ("ground",),
    ("numerics",),
    ("checkpoint",),
    ("artifact",),
    ("chat",),
    ("kernels",),
    ("gguf", "hf"),
    ("calibration", "formats"),
    ("engines",),
    ("sources",),
    ("methods",),
    ("inspection",),
    ("runtimes",),
    ("verification",),
    ("conversion", "manifest_of"),
    ("attesting",),
    ("commands",),
    ("evals",),
    ("benchmarks", "reports"),
    ("jobs", "serving"),
    ("cli",),
)
ROOMS = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
#: Modules that are started as programs (``python -m``): a process of its own shares nothing, so none of these
#: is an import.
PROGRAMS = (
    "quantize.cli",
    "quantize.chat.worker",
    "quantize.runtimes.llamacpp_child",
    "quantize.verification.process",
    "benchmarks.worker",
    "serving.program",
    "serving.page.child",
)
#: Libraries that take seconds, or hundreds of megabytes, to import: a module that imports one of these at its
#: top may itself be imported inside functions. Everything else of ours is imported at the top, where it is
#: seen.
HEAVY = (
    "torch",
    "transformers",
    "llama_cpp",
    "gptqmodel",
    "optimum",
    "bitsandbytes",
    "matplotlib",
    "ray",
    "lm_eval",
    "datasets",
    "huggingface_hub",
)
MODULES = modules()
ARROWS = [arrow for arrow in arrows(MODULES) if not (arrow.how == "string" and arrow.imported in PROGRAMS)]


def height(module: str) -> int:
    package, _, rest = module.partition(".")
    room = rest.partition(".")[0] if package == "quantize" else package
    return ROOMS.get(room, ROOMS["ground"])


def front(arrow: Arrow) -> bool:
    """The package's front names, by string, what a user imports from wherever it stands."""
    return arrow.importer in PACKAGES


def test_no_arrow_points_up() -> None:
    wrong = [str(a) for a in ARROWS if height(a.imported) > height(a.importer) and not front(a)]
    assert not wrong, "\n".join(wrong)


def test_no_circles() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for arrow in ARROWS:
        graph[arrow.importer].add(arrow.imported)
    assert circles(graph) == []


def test_only_heavy_modules_are_imported_inside_functions() -> None:
    heavy = {name for name, path in MODULES.items() if top_level(path) & set(HEAVY)}
    while more := {a.importer for a in ARROWS if a.how == "top" and a.imported in heavy} - heavy:
        heavy |= more
    wrong = [str(a) for a in ARROWS if a.how == "inside" and a.imported not in heavy and not front(a)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", ["numerics"])
def test_numerics_know_only_arrays(room: str) -> None:
    allowed = (f"quantize.{room}", "quantize.errors")
    wrong = [
        str(a)
        for a in ARROWS
        if a.importer.startswith(f"quantize.{room}") and not a.imported.startswith(allowed)
    ]
    assert not wrong, "\n".join(wrong)


def test_only_commands_know_how_a_command_line_is_read() -> None:
    """Libraries import neither click nor the commands' options."""
    commands = re.compile(r"quantize\.cli|\w+\.commands(\..+)?|.+[._]command")
    libraries = {name: path for name, path in MODULES.items() if not commands.fullmatch(name)}
    wrong = [
        f"{name}:{node.lineno} imports {imported}"
        for name, path in libraries.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for imported in [getattr(node, "module", None) or node.names[0].name]
        if imported.partition(".")[0] == "click"
    ]
    wrong += [
        str(a) for a in ARROWS if a.importer in libraries and a.imported.startswith("quantize.commands")
    ]
    assert not wrong, "\n".join(wrong)


def top_level(path: Path) -> set[str]:
    """Top-level packages that the module imports when it is imported."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
        waiting += ast.iter_child_nodes(node)
    return found


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


def test_wheel_holds_the_packages_and_the_demo(tmp_path: Path) -> None:
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
    assert "quantize/engines/isolated/auto-round.lock" in names
