"""What is installed: pins with hashes, and hints that name packages which are somebody's."""

import re
import shlex
from importlib import metadata
from pathlib import Path

import pytest

from quantize.packages import CONSTRAINTS, install_command

ROOT = Path(__file__).resolve().parents[2]


def test_every_pin_has_the_hash_of_its_file() -> None:
    pins = {line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")}
    lock = (ROOT / "requirements.lock").read_text()
    hashed = dict(
        re.findall(r"^(\S+==\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", lock, flags=re.MULTILINE)
    )
    assert {pin.lower() for pin in pins} == {pin.lower() for pin in hashed}
    assert all("==" in pin for pin in pins)


@pytest.mark.parametrize(
    "extra", sorted(set(metadata.metadata("quantwright").get_all("Provides-Extra")) - {"all", "dev"})
)
def test_hints_install_the_extras_own_packages_at_the_pins(
    extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(install_command(extra))
    assert words[:4] == ["pip", "install", "-c", "quantize/constraints.txt"]
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in CONSTRAINTS.read_text().splitlines()
        if "==" in line
    }
    names = [re.split(r"[\[<>=]", word)[0].lower() for word in words[4:]]
    assert names
    assert set(names) <= pinned


def test_no_message_names_this_project_on_an_index() -> None:
    """Whoever has that name there is not known."""
    for package in ("quantize", "evals", "reports", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            assert not re.search(r"pip install [^\n]*quantwright", path.read_text()), path
