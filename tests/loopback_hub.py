"""A Hub on the loopback device, for the real huggingface_hub client: what it asks to list, read and write."""

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from loopback_xet import Store

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
    with. ``xet``: whether large files go through Xet; ``cas_status``: what its storage refuses uploads with,
    ``cas_tokens``: what it was shown."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.cut_after: list[int] = []
        self.statuses: list[int] = []
        self.ranges = True
        self.objects: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.token = ""
        self.visibility: dict[str, object] = {}
        self.commits: list[tuple[str, str, list[str]]] = []
        self.collections: dict[str, list[str]] = {}
        self.card_errors: list[str] = []
        self.cut_uploads = 0
        self.before_commit: Callable[[], None] = lambda: None
        self.sent_bytes = 0
        self.xet: Store | None = None
        self.cas_status = 0
        self.cas_tokens: set[str] = set()

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
            "HF_HUB_CACHE": str(home / "hub"),  # goes before HF_HOME, and what other tests import sets it
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1",
            "HF_XET_CACHE": str(home / "xet"),
            "NO_PROXY": "*",
            "no_proxy": "*",
        }


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _git_hash(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


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
        if hub.cut_after and status == 206:
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
        elif match := re.fullmatch(r"/api/collections/(.+)", path):
            self.json(self._collection(match[1], match[1]))
        elif hub.xet and (match := re.fullmatch(r"/api/models/.+/xet-(read|write)-token/.+", path)):
            self._xet_token(match[1])
        elif hub.xet and re.match(r"/v\d/|/xorbs/", path):
            self._xet_read(hub.xet, path)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        else:
            self.json({"error": "not found"}, 404)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        """An object that the batch answer named: kept if the connection lasts."""
        hub, oid = self.server, self.path.rpartition("/")[2]
        hub.asked.append(("PUT", self.path, ""))
        if hub.cut_uploads:
            hub.cut_uploads -= 1
            self.rfile.read(10)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        good = hashlib.sha256(body).hexdigest() == oid
        if good:
            hub.objects[oid] = body
        self.answer(b"", 200 if good else 400)

    def do_POST(self) -> None:
        hub, path = self.server, unquote(self.path.split("?")[0])
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.asked.append(("POST", path, ""))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if hub.xet and path.startswith("/v"):
            hub.cas_tokens.add(token)
            self._xet_write(hub.xet, path, body)
            return
        hub.tokens.add(token)
        if path == "/api/validate-yaml":
            good = json.loads(body)["content"].startswith("---\n") and not hub.card_errors
            errors = [] if good else [{"message": hub.card_errors.pop(0) if hub.card_errors else "no head"}]
            self.json({"errors": errors, "warnings": []}, 200 if good else 400)
        elif hub.token and token != hub.token:
            self.json({"error": "Invalid credentials"}, 401)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            self._branch(match[1], match[2])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            self._preupload(match[1], match[2], json.loads(body))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._batch(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            hub.before_commit()
            self._commit(match[1], match[2], [json.loads(line) for line in body.splitlines()])
        elif path == "/api/collections":
            said = json.loads(body)
            slug = f"{said['namespace']}/{said['title'].lower().replace(' ', '-')}-1"
            status = 409 if slug in hub.collections else 200
            hub.collections.setdefault(slug, [])
            self.json(self._collection(slug, said["title"]), status)
        elif match := re.fullmatch(r"/api/collections/(.+)/items", path):
            item = json.loads(body)["item"]["id"]
            status = 409 if item in hub.collections[match[1]] else 200
            if status == 200:
                hub.collections[match[1]].append(item)
            self.json(self._collection(match[1], match[1]), status)
        else:
            self.json({"error": "not found"}, 404)

    def _xet_token(self, scope: str) -> None:
        token, expires = f"xet-{scope}", str(int(time.time()) + 900)
        headers = {"X_Xet_Cas_Url": self.server.url, "X_Xet_Access_Token": token}
        said = {"casUrl": self.server.url, "accessToken": token, "exp": int(expires)}
        self.json(said, **headers, X_Xet_Token_Expiration=expires)

    def _xet_read(self, store: Store, path: str) -> None:
        if path.startswith("/xorbs/"):
            self._body(store.xorbs[path.removeprefix("/xorbs/")])
        elif (match := re.fullmatch(r"/v1/reconstructions/(\w+)", path)) and match[1] in store.files:
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            wanted = (int(asked[1]), int(asked[2])) if asked else None
            found = store.reconstruction(match[1], wanted, f"{self.server.url}/xorbs/")
            self.json(found or {"error": "range"}, 200 if found else 416)
        else:
            self.json({"error": "not found"}, 404)

    def _xet_write(self, store: Store, path: str, body: bytes) -> None:
        if self.server.cas_status:
            self.json({"error": "not now"}, self.server.cas_status)
        elif match := re.fullmatch(r"/v1/xorbs/default/(\w+)", path):
            there = match[1] in store.xorbs
            store.xorbs[match[1]] = body
            self.json({"was_inserted": not there})
        elif path == "/v1/shards":
            try:
                self.server.objects.update(store.add_shard(body))
            except ValueError as error:
                self.json({"error": str(error)}, 400)
                return
            self.json({"result": 1})
        else:
            self.json({"error": "not found"}, 404)

    def _collection(self, slug: str, title: str) -> dict[str, object]:
        items = [{"_id": i, "id": i, "type": "model", "position": 0} for i in self.server.collections[slug]]
        return {
            "slug": slug, "title": title, "owner": {"name": "me"}, "items": items, "position": 0,
            "lastUpdated": "2026-01-01T00:00:00.000Z", "private": False, "theme": "blue", "upvotes": 0,
        }  # fmt: skip

    def _create(self, said: dict[str, object]) -> None:
        hub = self.server
        name = f"{said.get('organization') or 'me'}/{said['name']}"
        there = name in hub.repositories
        hub.repositories.setdefault(name, Repository())
        hub.visibility.setdefault(name, said.get("visibility"))
        self.json({"url": f"{hub.url}/{name}", "name": name}, 409 if there else 200)

    def _branch(self, name: str, branch: str) -> None:
        branches = self.server.repositories[name].branches
        there = branch in branches
        branches.setdefault(branch, branches["main"])
        self.json({}, 409 if there else 200)

    def _preupload(self, name: str, revision: str, said: dict[str, list[dict[str, object]]]) -> None:
        if (found := self._found(name, revision)) is None:
            return
        answers = []
        for file in said["files"]:
            path = str(file["path"])
            body = found[1].get(path)
            mode = "lfs" if path.endswith((".gguf", ".safetensors")) else "regular"
            digest = None if body is None else _git_hash(body) if mode == "regular" else _sha256(body)
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": digest})
        self.json({"files": answers})

    def _batch(self, said: dict[str, list[dict[str, object]]]) -> None:
        """What is here already needs no upload."""
        hub, objects = self.server, list[dict[str, object]]()
        for each in said["objects"]:
            upload = {"upload": {"href": f"{hub.url}/objects/{each['oid']}"}}
            objects.append({**each, **({} if each["oid"] in hub.objects else {"actions": upload})})
        self.json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, revision: str, lines: list[dict[str, dict[str, str]]]) -> None:
        hub = self.server
        if (found := self._found(name, revision)) is None:
            return
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, found[0]):
            self.json({"error": "A commit has happened since. Please refresh and try again."}, 412)
            return
        files = dict(found[1])
        for line in lines[1:]:
            kind, value = str(line["key"]), line["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = hub.objects[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        branch = revision if revision in hub.repositories[name].branches else "main"
        commit = hub.repositories[name].add(files, branch)
        hub.commits.append((name, header["summary"], [line["value"]["path"] for line in lines[1:]]))
        url = f"{hub.url}/{name}/commit/{commit}"
        self.json({"success": True, "commitUrl": url, "commitOid": commit, "hookOutput": ""})

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
        if hub.xet and (name := hub.xet.hashes.get(_sha256(body))):
            about["X_Xet_Hash"] = name
            about["X_Xet_Refresh_Route"] = f"{hub.url}/api/models/_/xet-read-token/{commit}"
        self._body(body, **about)

    def _body(self, body: bytes, **about: str) -> None:
        """The part that is asked for."""
        ranges = self.server.ranges
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if ranges else None
        if asked is None:
            self.answer(body, **about)
            return
        begin, end = int(asked[1]), min(int(asked[2] or len(body)), len(body) - 1)
        about["Content_Range"] = f"bytes {begin}-{end}/{len(body)}"
        self.answer(body[begin : end + 1], 206, **about)
