"""What the documents name is there: files, folders, modules and what is imported from them."""

import re
from importlib import import_module
from pathlib import Path

import pytest
from house import PACKAGES, ROOT

DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "demo/**/*.md")
    for path in ROOT.glob(pattern)
)
ROOMS = (*PACKAGES, "demo", "docs", "examples", "tests")
#: of another program, of the reader, or what is not to be
NOT_OURS = ("chat.py", "convert_hf_to_gguf.py", "hqq.py", "toy_plugin.py", "toy_worker.py", "utils.py")
#: an example, and keys of a GGUF file's metadata
NO_MODULES = ("quantize.methods.hqq", "quantize.imatrix.")
_PATH = re.compile(rf"(?<![\w./-])((?:{'|'.join(ROOMS)})/[\w./*-]*[\w*/]|[\w/-]+\.py\b)")
_MODULE = re.compile(rf"(?<![\w./:-])((?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+)")


def there(dotted: str) -> bool:
    """A module, or a name in one."""
    module, _, name = dotted.rpartition(".")
    if (ROOT / dotted.replace(".", "/")).is_dir() or (ROOT / f"{dotted.replace('.', '/')}.py").is_file():
        return True
    return bool(module) and there(module) and hasattr(import_module(module), name)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    missing = [
        name
        for name in _PATH.findall(text)
        if Path(name).name not in NOT_OURS and not any(ROOT.glob(name.rstrip("/")))
    ]
    missing += [name for name in _MODULE.findall(text) if not name.startswith(NO_MODULES) and not there(name)]
    assert not missing, "\n".join(sorted(set(missing)))
