"""The built-in calibration text."""

import ast
import inspect
import sysconfig
from pathlib import Path

import pytest

from quantize.calibration.texts import documentation_strings

NESTED = '''
"""The module's own documentation, which is longer than sixty characters, as it should be here."""
def first():
    try:
        class Inner:
            """Within a try statement within a function, and longer than sixty characters, too."""
    except ValueError:
        def handler():
            """Within a handler; indented
                more on its second line, and longer than sixty characters."""
    else:
        async def last():
            """Within else, and longer than sixty characters, which is what counts here."""
match 1:
    case 1:
        def matched():
            """Within a case of match, and longer than sixty characters, which is what counts."""
def second():
    "short"
    return lambda: 0
'''


def by_walking(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            found += [inspect.cleandoc(text)] if text and len(text) > 60 else []
    return found


@pytest.mark.parametrize("module", ["typing.py", "argparse.py", "tempfile.py", "asyncio/streams.py"])
def test_all_are_found_in_the_order_of_a_walk(module: str) -> None:
    path = Path(sysconfig.get_paths()["stdlib"]) / module
    assert documentation_strings(path) == by_walking(path) != []


def test_in_every_kind_of_statement(tmp_path: Path) -> None:
    path = tmp_path / "nested.py"
    path.write_text(NESTED)
    found = documentation_strings(path)
    assert found == by_walking(path)
    assert len(found) == 5
    path.write_text("def (")
    assert documentation_strings(path) == []
