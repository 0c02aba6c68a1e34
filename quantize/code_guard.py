"""The last defence after ``library_folder``: whatever a library does, no untrusted code is executed in this
process.

An audit hook (PEP 578) sees every piece of Python before it runs, of every extension module and shared
library before it is loaded, and of every question on stdin. It cannot be removed, so it is installed once,
and checks a set of folders.
"""

import contextlib
import os
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantize.errors import Unsupported

#: folders whose code is not executed, as absolute paths, links followed and not
_foreign: set[str] = set()
_trusted: set[str] = set()  # a person trusts a folder for the whole command, whichever part of it asks
_own: set[str] = set()
_refused: list[str] = []
_inside = 0  # how many ``no_code_from`` are open: while one is, no library may ask anything
_lock = threading.RLock()
_installed = False


@contextlib.contextmanager
def no_code_from(*folders: Path, whose: str, advice: str, trusted: bool = False) -> Iterator[None]:
    """Refuse code of ``folders`` from now on, for the life of the process (some is imported when a model
    first runs), and questions on stdin while this is open. ``trusted``: allow it, from now on.

    Errors: Unsupported, naming ``whose`` and ending in ``advice``, where something was about to run, whatever
    the library made of being refused.
    """
    global _inside
    roots = {form for folder in folders for form in _forms(str(folder))}
    with _lock:
        if trusted:
            _trusted.update(roots)
            _foreign.difference_update(roots)
        else:
            _install()
            _foreign.update(roots - _trusted)
            _inside += 1
    if trusted:
        yield
        return
    before = len(_refused)
    try:
        yield
    except Exception:
        _raise_refused(before, whose, advice)
        raise
    finally:
        with _lock:
            _inside -= 1
    _raise_refused(before, whose, advice)


def _raise_refused(before: int, whose: str, advice: str) -> None:
    if len(_refused) > before:
        raise Unsupported(f"{whose}: {_refused[before]}; {advice}") from None


def hub_code_folders() -> tuple[Path, ...]:
    """Where transformers keeps the code of models, and the Hub's cache, from which the kernels library
    imports."""
    from huggingface_hub import constants

    kernels = os.environ.get("KERNELS_CACHE")
    return (
        modules_cache() / "transformers_modules",
        Path(constants.HF_HUB_CACHE),
        *([Path(kernels)] if kernels else []),
    )


def modules_cache() -> Path:
    from huggingface_hub import constants

    return Path(os.environ.get("HF_MODULES_CACHE") or os.path.join(constants.HF_HOME, "modules"))


def _install() -> None:
    global _installed
    if _installed:
        return
    _installed = True
    package = Path(__file__).parent
    places = [
        sys.prefix,
        sys.base_prefix,
        *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    ]
    places += [str(package.with_name(name)) for name in (package.name, "evals", "reports", "benchmarks")]
    _own.update(form for place in places for form in _forms(place))
    sys.addaudithook(_audit)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event == "exec":
        code = args[0]
        path = getattr(code, "co_filename", "<")
        # without a name it is an empty __init__.py
        if not path.startswith("<") and _is_foreign(path) and code.co_names:
            _refuse(f"code of {path} was about to be executed")
    elif event in ("import", "ctypes.dlopen"):
        path = args[1] if event == "import" else args[0]
        if isinstance(path, str) and os.sep in path and _is_foreign(path):
            _refuse(f"{path} was about to be loaded")
    elif event == "builtins.input" and _inside:
        _refuse("a library was about to ask on the terminal whether to continue")


def _refuse(what: str) -> None:
    _refused.append(what)
    raise Unsupported(f"{what}; nothing from a checkpoint is executed unless you pass --trust-remote-code")


def _is_foreign(path: str) -> bool:
    """Whether the innermost of the folders known here that ``path`` lies in is untrusted: a virtual
    environment inside a checkpoint's folder is not."""
    return any(_innermost(_foreign, form) > _innermost(_own, form) for form in _forms(path))


def _innermost(roots: set[str], path: str) -> int:
    """Characters of the longest of ``roots`` that ``path`` lies in; 0 where it lies in none."""
    return max((len(root) for root in roots if path.startswith(root.rstrip(os.sep) + os.sep)), default=0)


def _forms(path: str) -> set[str]:
    return {os.path.abspath(path), os.path.realpath(path)}
