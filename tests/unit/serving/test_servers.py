"""Which server is chosen, what is said where none is here, and how it is started and watched."""

import json
import socket
import sys
from pathlib import Path

import pytest
from chat_artifact import gguf_artifact
from chat_cases import CHATML
from sample_artifact import make_artifact

from quantize.errors import BadInput, StepFailed, Unsupported
from serving.serve import free_port, serve

SERVER = """#!{python}
import http.server, json, sys
arguments = sys.argv[1:]
json.dump(arguments, open({record!r}, "w"))
print("the server's own output", flush=True)
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{{}}")
        {then}
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(arguments[arguments.index("--port") + 1])), Answers).serve_forever()
"""


def install(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, then: str = "") -> Path:
    """A program of that name on PATH, which writes down what it is given and answers."""
    folder.mkdir(exist_ok=True)
    record = folder / "given.json"
    text = SERVER.format(python=sys.executable, record=str(record), then=then or "sys.exit()")
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return record


LEAVE = "import os; os._exit(0)"


def test_a_gguf_is_served_by_llama_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    record = install(tmp_path / "bin", "llama-server", monkeypatch, LEAVE)
    artifact = gguf_artifact(tmp_path / "-a", CHATML)
    port = free_port()
    seen: list[str] = []
    code = serve(
        artifact.folder, port=port, name="x y", context=512, more=["--threads", "1"], ready=seen.append
    )
    given = json.loads(record.read_text())
    assert (code, seen) in ((0, []), (0, [f"http://127.0.0.1:{port}/v1"]))
    assert given == [
        "--model", str(artifact.gguf), "--alias", "x y", "--host", "127.0.0.1", "--port", str(port),
        "--jinja", "--ctx-size", "512", "--threads", "1",
    ]  # fmt: skip
    assert "the server's own output" in capfd.readouterr().out


def test_vllm_serves_with_the_flags_of_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUANTWRIGHT_VLLM", raising=False)
    record = install(tmp_path / "bin", "vllm", monkeypatch, LEAVE)
    artifact = make_artifact(tmp_path / "a", "gptq-int4", loads_in=("vllm",))
    serve(artifact.folder, port=free_port())
    assert json.loads(record.read_text())[:4] == [
        "serve", str(artifact.folder), "--served-model-name", "small-gptq-int4",
    ]  # fmt: skip


def test_vllm_of_another_python_is_started_as_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program on the path is passed over where the person names another."""
    install(tmp_path / "path", "vllm", monkeypatch, "import os; os._exit(9)")
    record = install(tmp_path / "own", "python", monkeypatch, LEAVE)
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/usr/bin:/bin")
    monkeypatch.setenv("QUANTWRIGHT_VLLM", str(tmp_path / "own"))
    artifact = make_artifact(tmp_path / "a", "gptq-int4", loads_in=("vllm",))
    serve(artifact.folder, port=free_port())
    assert json.loads(record.read_text())[:5] == [
        "-I", "-m", "vllm.entrypoints.openai.api_server", "--model", str(artifact.folder),
    ]  # fmt: skip


def test_a_server_that_fails_is_a_failed_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "bin", "llama-server", monkeypatch, "import os; os._exit(3)")
    artifact = gguf_artifact(tmp_path / "a", CHATML)
    with pytest.raises(StepFailed, match="exit code 3"):
        serve(artifact.folder, port=free_port())


def test_what_no_server_opens_and_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("QUANTWRIGHT_ENVIRONMENTS", str(tmp_path / "environments"))
    monkeypatch.delenv("QUANTWRIGHT_VLLM", raising=False)
    vllm = make_artifact(tmp_path / "v", "gptq-int4", loads_in=("vllm",))
    with pytest.raises(Unsupported, match="no server for it is here; needed: for vllm"):
        serve(vllm.folder)
    quanto = make_artifact(tmp_path / "q", "quanto-int8", loads_in=("optimum-quanto",))
    with pytest.raises(Unsupported, match="which none of"):
        serve(quanto.folder)
    with pytest.raises(Unsupported, match="which llama-server does not open"):
        serve(vllm.folder, wanted="llama-server")


def test_a_taken_port_and_a_damaged_artifact_are_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = install(tmp_path / "bin", "llama-server", monkeypatch)
    artifact = gguf_artifact(tmp_path / "a", CHATML)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BadInput, match="choose another --port"):
            serve(artifact.folder, port=taken.getsockname()[1])
    assert artifact.gguf is not None
    artifact.gguf.write_bytes(artifact.gguf.read_bytes()[:-1] + b"x")
    with pytest.raises(BadInput, match="does not match its sha256"):
        serve(artifact.folder, port=free_port())
    assert not record.exists()
