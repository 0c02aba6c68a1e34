"""Upload through huggingface_hub to a small server that speaks as much of the Hub's API as a commit needs."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sample_artifact import make_artifact


class Hub(ThreadingHTTPServer):
    """Remembers what it was asked and the files that were committed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str]] = []
        self.tokens: set[str] = set()
        self.created: dict[str, object] = {}
        self.files: dict[str, bytes] = {}
        self.summary = ""
        self.refuse_card = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, document: object, status: int = 200) -> None:
        body = document.encode() if isinstance(document, str) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        hub = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.asked.append(("POST", self.path))
        token = self.headers.get("Authorization", "")
        hub.tokens.add(token)
        if self.path == "/api/validate-yaml":
            content = json.loads(body)["content"]
            good = content.startswith("---\n") and not hub.refuse_card
            errors = [] if good else [{"message": "license: is not known"}]
            self.answer({"errors": errors, "warnings": []}, 200 if good else 400)
        elif "good" not in token:
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            hub.created = json.loads(body)
            self.answer({"url": f"{hub.url}/me/small"})
        elif self.path.startswith("/api/models/me/small/preupload/"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for f in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif self.path.startswith("/api/models/me/small/commit/"):
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "header":
                    hub.summary = item["value"]["summary"]
                else:
                    hub.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            self.answer(
                {
                    "success": True,
                    "commitUrl": f"{hub.url}/me/small/commit/1234",
                    "commitOid": "1234",
                    "hookOutput": "",
                }
            )
        else:
            self.answer({"error": "not found"}, 404)

    def do_GET(self) -> None:
        self.server.asked.append(("GET", self.path))
        self.answer({"error": "not found"}, 404)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def publish(
    folder: Path, endpoint: str, token: str = "hf_good", *args: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0",
                   "HF_HUB_DISABLE_TELEMETRY": "1",
                   "HF_HOME": str(folder.parent / "hf"), "NO_PROXY": "*", "no_proxy": "*"}  # fmt: skip
    command = [sys.executable, "-m", "quantize.cli", "publish", str(folder), "--repo", "me/small", *args]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_upload_is_what_the_dry_run_writes(hub: Hub, tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "q4").folder
    done = publish(folder, hub.url, "hf_good", "--private", "-o", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["url"].startswith(hub.url)
    written = {
        str(p.relative_to(tmp_path / "out")): p.read_bytes()
        for p in (tmp_path / "out").rglob("*")
        if p.is_file()
    }
    assert hub.files == written
    assert sorted(written) == document["files"]
    assert hub.created["visibility"] == "private"
    assert hub.summary == "Quantized by Quantwright: gguf-q4_k_m"
    assert hub.tokens <= {"Bearer hf_good", ""}


def test_a_dry_run_asks_nobody(hub: Hub, tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "q4").folder
    done = publish(folder, hub.url, "hf_good", "--dry-run", "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert hub.asked == []
    assert (tmp_path / "out" / "README.md").is_file()


@pytest.mark.parametrize("case", ["token", "card", "unreachable", "offline"])
def test_what_the_hub_refuses(case: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_artifact(tmp_path / "q4").folder
    hub.refuse_card = case == "card"
    endpoint = "http://127.0.0.1:9" if case == "unreachable" else hub.url
    done = publish(folder, endpoint, "hf_bad" if case == "token" else "hf_good")
    if case == "offline":
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_good", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "quantize.cli", "publish", str(folder), "--repo", "me/small"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    expected = {"token": (1, "HF_TOKEN"), "card": (2, "license: is not known"), "unreachable": (1,
    "cannot be reached"),
                "offline": (1, "HF_HUB_OFFLINE")}  # fmt: skip
    code, words = expected[case]
    assert done.returncode == code, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert words in last
    assert last.startswith("quantwright: me/small:")
    assert case == "offline" or hub.files == {}
