"""Servers of others, started, asked and stopped, as a person does it."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from chat_cases import CHATML

from quantize.conversion import convert
from quantize.process import child_environment
from serving.serve import free_port

SERVERS = {
    "llama-cpp-python": ("fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings"),
    "transformers": ("fastapi", "uvicorn", "openai"),
}
RECIPES = {"llama-cpp-python": "gguf-q8_0", "transformers": "bfloat16"}


@pytest.fixture(scope="module")
def artifact(make_checkpoint: Callable[..., Path], tmp_path_factory: Any) -> Callable[[str], Path]:
    """Of a small model that chats, by recipe."""
    folder = make_checkpoint()
    (folder / "chat_template.jinja").write_text(CHATML)
    made: dict[str, Path] = {}

    def make(recipe: str) -> Path:
        if recipe not in made:
            made[recipe] = tmp_path_factory.mktemp("artifact") / "a"
            convert(folder, recipe, made[recipe], verify="none")
        return made[recipe]

    return make


@contextmanager
def served(folder: Path, *arguments: str, home: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The command, and the address that it says it answers at."""
    command = [sys.executable, "-m", "quantize.cli", "serve", str(folder), "--json", *arguments]
    environment = child_environment(HF_HUB_CACHE=str(home / "hub"), HF_HOME=str(home))
    root = Path(__file__).parents[3]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), environment.get("PYTHONPATH"))))
    with open(home / "log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        try:
            assert process.stdout is not None
            line = next((line for line in process.stdout if line.startswith('{"url"')), None)
            assert line, (home / "log").read_text()[-3000:]
            yield process, json.loads(line)["url"]
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return dict(json.loads(answer.read()))


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


def gone(pid: int, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize(
    ("name", "number", "code"),
    [
        ("llama-cpp-python", signal.SIGINT, 130),
        ("llama-cpp-python", signal.SIGKILL, -signal.SIGKILL),
        pytest.param("transformers", signal.SIGTERM, 128 + signal.SIGTERM, marks=pytest.mark.long),
    ],
)
def test_a_server_answers_and_ends_with_us(
    name: str, number: int, code: int, artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    absent = [module for module in SERVERS[name] if find_spec(module) is None]
    if absent:
        pytest.skip(f"{name}'s server needs {', '.join(absent)}")
    port, folder = free_port(), artifact(RECIPES[name])
    with served(folder, "--port", str(port), "--with", name, "--name", "small", home=tmp_path) as (
        process,
        url,
    ):
        assert url == f"http://127.0.0.1:{port}/v1"
        models = ask(f"{url}/models")
        assert models["object"] == "list"
        model = "small" if name != "transformers" else str(folder.resolve())
        if name != "transformers":
            assert [each["id"] for each in models["data"]] == ["small"]
        answer = ask(
            f"{url}/chat/completions",
            {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5},
        )
        assert answer["object"] == "chat.completion"
        assert isinstance(answer["choices"][0]["message"]["content"], str)
        (child,) = children(process.pid)
        process.send_signal(number)
        assert process.wait(30) == code
        assert gone(child)
