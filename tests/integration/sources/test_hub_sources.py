"""Models of a Hub that other people filled: one file of a GGUF repository, all of them, folders. Through a
real local server."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from quantize.results import read_results

pytest.importorskip("llama_cpp")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves ``repositories`` (id -> file name -> content); remembers which files were sent."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = repositories
        self.sent: list[str] = []
        self.cache: Path | None = None
        self.most_blobs = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def reply(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            files = self.server.repositories.get(match[1])
            if files is None:
                self.reply(b'{"error": "Repository not found"}', 404, X_Error_Code="RepoNotFound")
                return
            siblings = [{"rfilename": name, "size": len(body)} for name, body in files.items()]
            document = {"id": match[1], "sha": COMMIT, "siblings": siblings}
            self.reply(json.dumps(document).encode(), Content_Type="application/json")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            entries = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in self.server.repositories[match[1]].items()
            ]
            self.reply(json.dumps(entries).encode(), Content_Type="application/json")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            body = self.server.repositories[match[1]][match[2]]
            if self.command == "GET":
                self.server.sent.append(match[2])
                blobs = [] if self.server.cache is None else list(self.server.cache.rglob("blobs/*"))
                self.server.most_blobs = max(self.server.most_blobs, len(blobs))
            self.reply(body, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha256(body).hexdigest()}"')
        else:
            self.reply(b'{"error": "not found"}', 404)

    do_HEAD = do_GET


@pytest.fixture(scope="module")
def files(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, bytes]]:
    """A checkpoint, and GGUF files of it as a repository names them: Q4_0, Q8_0, and F16 in parts."""
    from quantize import convert
    from quantize.recipe import RunOptions

    source = make_checkpoint(num_hidden_layers=1)
    folder = tmp_path_factory.mktemp("files")
    found = {"README.md": b"# small", "mmproj-F16.gguf": b"GGUF"}
    for short, name in (
        ("gguf-q4_0", "small-Q4_0"),
        ("gguf-q8_0", "small-Q8_0"),
        ("gguf-f16:split_max_bytes=2000000", "F16/small-F16"),
    ):
        artifact = convert(
            source,
            short,
            folder / name,
            verify="none",
            run=RunOptions(device="cpu", threads=1, progress=False),
        )
        for path in sorted(artifact.folder.glob("*.gguf")):
            part = re.search(r"-\d{5}-of-\d{5}", path.name)
            found[f"{name}{part[0] if part else ''}.gguf"] = path.read_bytes()
    return source, found


@pytest.fixture
def hub(files: tuple[Path, dict[str, bytes]], tmp_path: Path) -> Iterator[Hub]:
    source, ggufs = files
    folder = {path.name: path.read_bytes() for path in source.iterdir()}
    server = Hub({"org/small-GGUF": ggufs, "org/small": folder})
    server.cache = tmp_path / "hf"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def run(hub: Hub, *arguments: str, offline: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quantize.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(hub, offline), timeout=300, check=False
    )


EVAL = ("--tokens", "600", "--protocol", "llamacpp-64", "--threads", "1", "--json")


def test_all_files_of_a_repository_one_on_disk_beside_the_reference(hub: Hub, tmp_path: Path) -> None:
    done = run(
        hub, "eval", "org/small-GGUF:*", "--prune", "--generate", "8", "-o", str(tmp_path / "run"), *EVAL
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    names = [f"org/small-GGUF:{label}" for label in ("Q4_0", "Q8_0", "F16")]
    assert list(dict.fromkeys(row["artifact"] for row in rows)) == [
        *names,
        f"{names[-1]} with an F32 KV cache",
    ]
    kl = {row["artifact"]: row["value"] for row in rows if row["metric"] == "kl_mean"}
    assert kl[names[0]] > kl[names[1]] > 1e-6 > kl[names[2]] >= 0
    assert "reference: org/small-GGUF:F16, the largest" in done.stderr
    written = [row["detail"]["items"] for row in rows if row["metric"] == "generations"]
    assert [len(items) for items in written] == [3, 3, 3]
    # spelled by llama.cpp's own tokenizer: there is no source
    assert all(item["text"] for item in written[0])
    parts = [name for name in hub.repositories["org/small-GGUF"] if name.startswith("F16/")]
    assert len(parts) > 1
    assert sorted(hub.sent) == sorted([*parts, "small-Q4_0.gguf", "small-Q8_0.gguf"])
    assert hub.most_blobs == len(parts) + 1  # the reference, and the one being fetched
    assert not list((tmp_path / "hf").rglob("*.gguf"))
    subjects = {subject.name: subject for subject, _ in read_results(tmp_path / "run")}
    assert set(subjects) == set(names)
    assert subjects[names[2]].size_bytes == sum(
        len(hub.repositories["org/small-GGUF"][part]) for part in parts
    )
    assert subjects[names[2]].bits_per_weight == pytest.approx(16, abs=0.1)
    assert 4.5 < (subjects[names[0]].bits_per_weight or 0) < 6
    report = run(hub, "report", str(tmp_path / "run"), "--json")
    assert report.returncode == 0, report.stderr
    assert "the largest of what was measured" in (tmp_path / "run" / "report" / "report.md").read_text()
    assert len(json.loads(report.stdout.splitlines()[-1])["rows"]) == 4  # and the floor


def test_one_file_against_its_source_and_later_without_the_hub(hub: Hub, tmp_path: Path) -> None:
    arguments = ("eval", "org/small-GGUF:q8_0", "--reference", "org/small", *EVAL)
    done = run(hub, *arguments)
    assert done.returncode == 0, done.stderr
    kl = next(row for row in json.loads(done.stdout.splitlines()[-1]) if row["metric"] == "kl_mean")
    assert 1e-6 < kl["value"] < 0.05
    assert kl["ids"] == "source"
    again = run(hub, *arguments, "--prune", offline=True)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1]) == json.loads(done.stdout.splitlines()[-1])
    assert hub.sent.count("small-Q8_0.gguf") == 1
    assert "was in the cache before, so it stays" in again.stderr


def test_bench_and_conversion_of_a_file(hub: Hub, tmp_path: Path) -> None:
    sizes = ("--prefill", "16", "--decode", "4", "--repetitions", "1", "--threads", "1")
    done = run(hub, "bench", "org/small-GGUF:*", "--prune", *sizes, "-o", str(tmp_path / "run"), "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert {row["artifact"] for row in rows if row["metric"] == "tg_tokens_per_s"} == {
        f"org/small-GGUF:{label}" for label in ("Q4_0", "Q8_0", "F16")
    }
    assert not list((tmp_path / "hf").rglob("*.gguf"))
    done = run(
        hub,
        "convert",
        "org/small-GGUF:F16",
        "--to",
        "gguf-q8_0",
        "--verify",
        "none",
        "-o",
        str(tmp_path / "q8"),
    )
    assert done.returncode == 0, done.stderr


BAD = [
    (["eval", "org/small-GGUF:Q5_K_M"], 2, "no file is named that in the repository; it has Q4_0, Q8_0, F16"),
    (["eval", "org/small-GGUF"], 2, "name a file, org/small-GGUF:Q4_K_M"),
    (["eval", "org/none-GGUF:Q4_0"], 2, "nor a repository on the Hub"),
    (["eval", "org/small:*"], 2, "holds no .gguf file"),
    (["eval", "org/small-GGUF:*", "org/small-GGUF:Q4_0"], 2, "listed twice"),
    (["bench", "org/small-GGUF:*", "--prune", "--rounds", "2"], 2, "drop --prune"),
    (["bench", "org/small-GGUF:Q4_0", "--load-as", "bnb-nf4"], 2, "opened unchanged"),
    (["eval", "org/small-GGUF:Q4_0", "--metrics", "divergence"], 2, "give --reference MODEL"),
]
ALL_OF_THEM = """
import json, sys
from quantize.cli import cli
from quantize.errors import QuantwrightError
for arguments in json.loads(sys.argv[1]):
    try:
        cli.main(arguments, standalone_mode=False)
    except QuantwrightError as error:
        print(json.dumps([error.exit_code, str(error)]))
"""


def environment(hub: Hub, offline: bool = False) -> dict[str, str]:
    # HF_HUB_CACHE goes before HF_HOME, and libraries imported by other tests set it.
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    }
    return {**inherited, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": str(int(offline)),
    "HF_HOME": str(hub.cache),
            "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*", "no_proxy": "*"}  # fmt: skip


def test_bad_input(hub: Hub) -> None:
    command = [sys.executable, "-c", ALL_OF_THEM, json.dumps([arguments for arguments, _, _ in BAD])]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(hub), timeout=300, check=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    for (arguments, code, expected), (got, message) in zip(BAD, found, strict=True):
        assert got == code, arguments
        assert expected in message
        assert "\n" not in message
    assert not [name for name in hub.sent if name.endswith(".gguf")]


def test_a_hub_that_cannot_be_reached(hub: Hub) -> None:
    hub.shutdown()
    hub.server_close()
    done = run(hub, "eval", "org/small-GGUF:Q4_0")
    assert done.returncode == 1
    assert "org/small-GGUF: the Hub cannot be reached" in done.stderr.splitlines()[-1]


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode()
BESIDE = (
    "consolidated.safetensors",
    "adapter_model.safetensors",
    "optimizer.safetensors",
    "pytorch_model.bin",
    "onnx/m.json",
    "modeling_x.py",
)
SMALL = ("config.json", "1_Pooling/config.json", "additional_chat_templates/tool_use.jinja")


@pytest.mark.parametrize(
    ("weights", "needed"),
    [
        (
            ("model.safetensors", *SHARDS, "model.safetensors.index.json"),
            ("model.safetensors", "model.safetensors.index.json"),
        ),
        (
            (*SHARDS, "model-extra.safetensors", "model.safetensors.index.json"),
            (*SHARDS, "model.safetensors.index.json"),
        ),
    ],
)
def test_of_the_weights_only_what_is_loaded_is_fetched(
    hub: Hub, weights: tuple[str, ...], needed: tuple[str, ...]
) -> None:
    files = {name: name.encode() for name in (*weights, *BESIDE, *SMALL)} | {
        "model.safetensors.index.json": INDEX
    }
    hub.repositories["org/large"] = files
    script = "import sys; from quantize.sources.hub import resolve_model; print(*resolve_model(sys.argv[1]))"
    for offline in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", script, "org/large"],
            capture_output=True, text=True, env=environment(hub, offline), timeout=120, check=True,
        )  # fmt: skip
        folder, commit = done.stdout.split()
        assert commit == COMMIT
        assert {
            path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()
        } == {*needed, *SMALL}
    assert sorted(hub.sent) == sorted({*needed, *SMALL})
    # its code is trusted
    command = [
        sys.executable,
        "-c",
        script.replace("[1]", "[1], code=True"),
        "org/large",
    ]
    subprocess.run(command, capture_output=True, env=environment(hub), timeout=120, check=True)
    assert hub.sent[len({*needed, *SMALL}) :] == ["modeling_x.py"]
