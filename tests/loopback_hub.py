"""A Hub on the loopback device, for the real huggingface_hub client: what it asks to list, read and write."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

NEW = "0" * 40


@dataclass
class Repository:
    """``commits``: id -> files; ``branches``: name -> id."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {NEW: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": NEW})

    def add(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """A commit whose whole content is ``files``."""
        said = "".join(f"{name} {hashlib.sha1(body).hexdigest()}\n" for name, body in sorted(files.items()))
        before = self.branches.get(branch, NEW)
        commit = hashlib.sha1(f"{before}\n{said}".encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self.branches.get(revision, revision)
        files = self.commits.get(commit)
        return None if files is None else (commit, files)


class LoopbackHub(ThreadingHTTPServer):
    """``asked``: (method, path, range) of every request. ``cut_after``: bytes after which the connection of
    the next answers breaks off, one entry each. ``statuses``: what the next requests for files are refused
    with."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.cut_after: list[int] = []
        self.statuses: list[int] = []
        self.ranges = True
        self.sent_bytes = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fill(self, repository: str, folder: Path | Mapping[str, bytes]) -> str:
        """A repository with the files of ``folder``. Returns its commit."""
        files = folder
        if isinstance(files, Path):
            root = files
            files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        return self.repositories.setdefault(repository, Repository()).add(files)

    def environment(self, home: Path) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "*",
            "no_proxy": "*",
        }


def _entry(path: str, body: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}


@contextmanager
def running() -> Iterator[LoopbackHub]:
    hub = LoopbackHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        hub = self.server
        if hub.cut_after and status in (200, 206) and "ETag" in headers:
            body = body[: hub.cut_after.pop(0)]
            self.close_connection = True
        with suppress(ConnectionError):  # whoever had read enough
            self.wfile.write(body)
        hub.sent_bytes += len(body)

    def json(self, document: object, status: int = 200, **headers: str) -> None:
        self.answer(json.dumps(document).encode(), status, Content_Type="application/json", **headers)

    def do_GET(self) -> None:
        hub, path = self.server, unquote(self.path.split("?")[0])
        hub.asked.append((self.command, path, self.headers.get("Range", "")))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._tree(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        else:
            self.json({"error": "not found"}, 404)

    do_HEAD = do_GET

    def _found(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.server.repositories.get(name)
        if repository is None:
            self.json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return None
        found = repository.at(revision)
        if found is None:
            self.json({"error": "Revision not found"}, 404, X_Error_Code="RevisionNotFound")
        return found

    def _info(self, name: str, revision: str) -> None:
        if (found := self._found(name, revision)) is not None:
            siblings = [{"rfilename": n, "size": len(body)} for n, body in sorted(found[1].items())]
            self.json({"id": name, "sha": found[0], "siblings": siblings})

    def _tree(self, name: str, revision: str) -> None:
        if (found := self._found(name, revision)) is not None:
            self.json([_entry(path, body) for path, body in sorted(found[1].items())])

    def _file(self, name: str, revision: str, path: str) -> None:
        hub = self.server
        if hub.statuses and self.command == "GET":
            self.json({"error": "not now"}, hub.statuses.pop(0))
            return
        if (found := self._found(name, revision)) is None:
            return
        commit, files = found
        if path not in files:
            self.json({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            return
        body = files[path]
        about = {"X_Repo_Commit": commit, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if hub.ranges else None
        if asked is None:
            self.answer(body, **about)
            return
        begin, end = int(asked[1]), min(int(asked[2] or len(body)), len(body) - 1)
        about["Content_Range"] = f"bytes {begin}-{end}/{len(body)}"
        self.answer(body[begin : end + 1], 206, **about)
