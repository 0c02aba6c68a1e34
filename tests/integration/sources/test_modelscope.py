"""``modelscope:org/name`` through ModelScope's own library, against a server of the two requests that it
makes."""

import hashlib
import http.server
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from quantize.errors import BadInput
from quantize.sources.hub import resolve_model

installed = pytest.mark.skipif(
    importlib.util.find_spec("modelscope") is None, reason="extra modelscope is not installed"
)
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


class Hub(http.server.BaseHTTPRequestHandler):
    """One model, org/name: the list of its files, and each of them."""

    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/api/v1/models/org/name/repo/files":
            self._answer(
                json.dumps(
                    {
                        "Code": 200,
                        "Success": True,
                        "Data": {"Files": [self._entry(name) for name in self.names]},
                    }
                )
            )
        elif url.path == "/api/v1/models/org/name/repo":
            (name,) = parse_qs(url.query)["FilePath"]
            self.asked.append(name)
            self._answer((self.folder / name).read_bytes())
        else:
            self._answer(
                json.dumps({"Code": 10010205001, "Message": "record not found", "Success": False}), 404
            )

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def _entry(self, name: str) -> dict[str, object]:
        data = (self.folder / name).read_bytes()
        return {
            "Name": name, "Path": name, "Type": "blob", "Size": len(data),
            "Sha256": hashlib.sha256(data).hexdigest(),
            "Revision": "0" * 40,
        }  # fmt: skip

    def _answer(self, body: str | bytes, status: int = 200) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """-> names of the files that were asked for."""
    folder = tmp_path / "served"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes((demo_checkpoint / name).read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that nobody wants")
    asked: list[str] = []
    handler = type("Served", (Hub,), {"folder": folder, "asked": asked})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
    yield asked
    server.shutdown()


def plan(model: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quantize.cli", "plan", model, "--to", "gguf-q8_0"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@installed
def test_only_what_is_needed_is_fetched(hub: list[str]) -> None:
    done = plan("modelscope:org/name")
    assert done.returncode == 0, done.stderr
    assert "convert name gguf-q8_0" in done.stdout
    assert sorted(hub) == sorted(FILES)
    assert plan("modelscope:org/name").returncode == 0
    assert len(hub) == len(FILES)


@installed
def test_a_model_that_is_not_there(hub: list[str]) -> None:
    done = plan("modelscope:org/other")
    assert done.returncode == 2
    assert "no such model or revision on ModelScope" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_no_name_of_a_model(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"expected modelscope:org/name\[@revision\]"):
        resolve_model("modelscope:name")


@pytest.mark.skipif(importlib.util.find_spec("modelscope") is not None, reason="modelscope is installed")
def test_without_the_library() -> None:
    with pytest.raises(BadInput, match=r"pip install .*modelscope"):
        resolve_model("modelscope:org/name")
