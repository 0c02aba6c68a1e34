"""The engine that docs/engines.md adds, as an installed package registers it: its code is that page's."""

import base64
import hashlib
import os
import re
import sys
import zipfile
from pathlib import Path

from conftest import ROOT

PACKAGE = "__version__ = '1.0'\n\ndef nearest(value):\n    return round(value)\n"


def write_wheel(folder: Path) -> Path:
    """toyround 1.0, byte for byte the same each time."""
    info = "toyround-1.0.dist-info"
    files = {
        "toyround.py": PACKAGE,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: toyround\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: toy\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(text)}\n"
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    path = folder / "toyround-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), text)
    return path


def write_plugin(folder: Path) -> None:
    """The page's two modules, a lock, and the entry points of an installed distribution."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = write_wheel(folder)
    worker, plugin = re.findall(r"```python\n(.*?)```", page(), flags=re.DOTALL)
    (folder / "toy_worker.py").write_text(worker, encoding="utf-8")
    (folder / "toy_plugin.py").write_text(plugin, encoding="utf-8")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (folder / "toy.lock").write_text(f"toyround==1.0 \\\n    --hash=sha256:{sha256}\n", encoding="utf-8")
    info = folder / "toy_plugin-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-plugin\nVersion: 1.0\n")
    points = re.findall(r'entry-points\."(.+)"\]\n    (\w+) = "(.+)"', page())
    text = "".join(f"[{group}]\n{name} = {value}\n" for group, name, value in points)
    (info / "entry_points.txt").write_text(text, encoding="utf-8")


def page() -> str:
    return (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")


def environment(folder: Path, cache: Path, **others: str) -> dict[str, str]:
    """Of a child that has the plugin, no index, and the wheel where pip looks."""
    paths = os.pathsep.join([str(folder), str(ROOT)])
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_"))}
    bare["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.defpath
    places = {"XDG_CACHE_HOME": str(cache), "QUANTWRIGHT_ENVIRONMENTS": str(cache / "environments")}
    return {**bare, "PYTHONPATH": paths, **places, **settings, **others}
