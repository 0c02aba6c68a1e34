"""What imports what in this project, read from its source: in-function imports and strings that name modules
too."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("quantize", "evals", "benchmarks", "reports", "jobs", "serving")
#: Scripts that measure the program from outside, as any other program would.
OUTSIDE = ("peers", "program")
_MODULE = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.[a-z_0-9]+)+(?::\w+)?")


@dataclass(frozen=True)
class Arrow:
    """``how``: at the ``top``, ``inside`` a function, for ``typing`` alone, or a ``string``."""

    importer: str
    imported: str
    line: int
    how: str

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}" + (
            "" if self.how == "top" else f" ({self.how})"
        )


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of ours that is installed."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if not set(OUTSIDE) & set(path.relative_to(ROOT).parts):
                found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def arrows(names: dict[str, Path]) -> list[Arrow]:
    return [arrow for name, path in names.items() for arrow in _arrows_of(name, path, names)]


def _arrows_of(name: str, path: Path, names: dict[str, Path]) -> list[Arrow]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside, typing = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside |= {id(each) for each in ast.walk(node)}
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            typing |= {id(each) for each in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        how = "typing" if id(node) in typing else "inside" if id(node) in inside else "top"
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            wanted = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE.fullmatch(node.value):
            wanted, how = [node.value.partition(":")[0]], "string"
            if wanted[0] not in names:
                continue
        else:
            continue
        for each in wanted:
            module = _module(each, names)
            if module and module != name:
                found.append(Arrow(name, module, node.lineno, how))
    return found


def _module(dotted: str, names: dict[str, Path]) -> str:
    """The longest beginning of ``dotted`` that is a module of ours."""
    while dotted and dotted not in names:
        dotted = dotted.rpartition(".")[0]
    return dotted


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another (strongly connected components, Tarjan 1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in number:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            at = stack.index(name)
            found.append(sorted(stack[at:]))
            del stack[at:]

    for name in graph:
        if name not in number:
            visit(name)
    return [group for group in found if len(group) > 1]
