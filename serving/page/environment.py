"""Gradio's environment: it wants a Pillow that this program's own pins exclude."""

from pathlib import Path

from quantize.engines.isolated.environment import Environment, check_possible, installed
from quantize.engines.isolated.install import install
from quantize.engines.isolated.known import IsolatedEngine
from quantize.errors import Unsupported

HERE = Path(__file__).parent
GRADIO = IsolatedEngine(
    "gradio", HERE / "gradio.lock", HERE / "gradio_page.py", "gradio", "the page of `quantwright try`"
)


def environment(make: bool) -> Environment:
    """``make``: install it where it is missing. Errors: Unsupported where it is not there; those of
    ``install``."""
    found = installed(GRADIO)
    if found is None and make:
        return install(GRADIO)
    if found is None:
        check_possible(GRADIO)
        raise Unsupported(
            f"try: the page needs {GRADIO.label} in an environment of its own ({len(GRADIO.pins)} packages); "
            "install it with: quantwright try --install"
        )
    return found
