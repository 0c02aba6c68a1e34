"""Environments of engines: real ones, made offline from a wheel that the test builds; docs/engines.md is the
plugin that registers it."""

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import toy_engine

from quantize.artifact.artifact import Artifact
from quantize.engines.isolated.call import call
from quantize.engines.isolated.environment import (
    BORROWED,
    MARKER,
    Environment,
    alone_in,
    installed,
    place_of,
)
from quantize.engines.isolated.install import install
from quantize.engines.isolated.known import ENGINES, isolated_engine
from quantize.errors import StepFailed, Unsupported
from quantize.recipe import RunOptions

PROGRAM = [sys.executable, "-m", "quantize.cli"]
RUN = RunOptions(device="cpu", threads=1, progress=False)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    toy_engine.write_plugin(folder)
    return folder


@pytest.fixture(scope="module")
def toy(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """Installed once, by pip, for this process too."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in toy_engine.environment(plugin, cache).items():
            if name.startswith("PIP_") or name in ("XDG_CACHE_HOME", "QUANTWRIGHT_ENVIRONMENTS"):
                patch.setenv(name, value)
        patch.syspath_prepend(str(plugin))
        patch.setitem(ENGINES, "toy", "toy_plugin:TOY")
        yield install(isolated_engine("toy"), "pip", progress=False)
        isolated_engine.cache_clear()


def run(plugin: Path, cache: Path, *arguments: str, **others: str) -> "subprocess.CompletedProcess[str]":
    environment = toy_engine.environment(plugin, cache, **others)
    return subprocess.run([*PROGRAM, *arguments], env=environment, capture_output=True, text=True)


def folders(cache: Path) -> list[Path]:
    return [path for path in (cache / "environments").iterdir() if path.is_dir()]


def test_an_environment_holds_what_its_lock_says(toy: Environment) -> None:
    assert toy.versions == {"toyround": "1.0"}
    assert toy.torch == ""
    code = "import toyround, sys; print(toyround.nearest(2.6), *sys.path)"
    said = subprocess.run([toy.python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("3 ")
    assert str(toy.folder) in said
    assert installed(toy.engine) == toy
    assert install(toy.engine, "pip") == toy  # found, not made again


def test_the_page_s_engine_converts(plugin: Path, toy: Environment, make_checkpoint, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = make_checkpoint(num_hidden_layers=1, hidden_size=64, intermediate_size=128)
    cache, out = tmp_path / "empty", tmp_path / "out"
    cache.mkdir()
    arguments = ["convert", str(source), "--to", "toy-int4", "-o", str(out), "--device", "cpu"]
    refused = run(plugin, cache, *arguments)
    assert refused.returncode == 2
    assert "install with: quantwright env install toy" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    done = run(plugin, cache, *arguments, "--yes")
    assert done.returncode == 0, done.stderr
    manifest = Artifact.load(out).manifest
    assert manifest.verification.level == "full"
    assert manifest.verification.passed
    assert manifest.engine == "toyround 1.0"
    assert manifest.details["environment"]["versions"] == {"toyround": "1.0"}
    assert manifest.details["environment"]["lock_sha256"] == toy.engine.sha256
    assert str(cache) not in (out / "manifest.json").read_text(encoding="utf-8")


def test_what_an_engine_takes_is_checked_before_anything(
    toy: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wants, said in ({"python": ">=9"}, "wants? Python >=9"), ({"torch": ">=9"}, "torch.*wants >=9"):
        with pytest.raises(Unsupported, match=said):
            install(replace(toy.engine, **wants))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nowhere", "exit code 1.*No module named 'nowhere'"),
        ("import sys\nprint('the disk is odd')\nsys.exit(3)", "exit code 3.*the disk is odd"),
        ("import os\nos.kill(os.getpid(), 11)", "signal 11"),
        ("pass", "without a response"),
        ("open(sys.argv[2], 'w').write('[1]')", "without a response"),
        ("open(sys.argv[2], 'w').write('{\"contract\": 2}')", "contract 2"),
        ("open(sys.argv[2], 'w').write('{\"contract\": 1, \"size\": 2}')", "response cannot be read: size"),
        ('open(sys.argv[2], \'w\').write(\'{"contract": 1, "error": "no GPU"}\')', "toyround 1.0: no GPU"),
        ("import time\nprint('thinking', flush=True)\ntime.sleep(600)", "for 1 s and was ended.*thinking"),
    ],
)
def test_what_goes_wrong_there_is_one_message_here(
    code: str, said: str, toy: Environment, tmp_path: Path
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(f"import sys\n{code}\n", encoding="utf-8")
    broken = replace(toy, engine=replace(toy.engine, worker=worker))
    with pytest.raises(StepFailed, match=said) as failure:
        call(broken, tmp_path, {"task": "quantize"}, RUN, idle_seconds=1.0)
    assert "\n" not in str(failure.value)


def test_an_engine_sees_no_secret_and_no_hub(
    toy: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_nobodyshouldseethis")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, os, sys\n"
        "json.dump({'contract': 1, 'details': {'seen': dict(os.environ)}}, open(sys.argv[2], 'w'))\n",
        encoding="utf-8",
    )
    curious = replace(toy, engine=replace(toy.engine, worker=worker))
    seen = call(curious, tmp_path, {"task": "quantize"}, RUN).details["seen"]
    assert "HF_TOKEN" not in seen
    assert "PYTHONPATH" not in seen
    assert seen["HF_HUB_OFFLINE"] == "1"
    assert seen["OMP_NUM_THREADS"] == "1"


def test_unresolvable_leaves_nothing(plugin: Path, tmp_path: Path) -> None:
    done = run(plugin, tmp_path, "env", "install", "toy", "--installer", "pip", PIP_FIND_LINKS="")
    assert done.returncode == 1
    assert "No matching distribution found for toyround==1.0" in done.stderr.splitlines()[-1]
    assert "nothing was installed" in done.stderr.splitlines()[-1]
    assert folders(tmp_path) == []


def test_a_second_installation_waits_and_finds_it(
    plugin: Path, toy: Environment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QUANTWRIGHT_ENVIRONMENTS", str(tmp_path / "environments"))
    environment = toy_engine.environment(plugin, tmp_path)
    command = [*PROGRAM, "env", "install", "toy", "--installer", "pip", "--json"]
    with alone_in(place_of(toy.engine)):
        pair = [
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        for each in pair:
            assert each.stderr is not None
            assert "another process is at work there; waiting for it" in each.stderr.readline()
    said = [each.communicate() for each in pair]
    assert [each.returncode for each in pair] == [0, 0]
    assert len({out.splitlines()[-1] for out, _ in said}) == 1
    assert sorted("installed in" in words for _, words in said) == [False, True]  # one made it


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_installation_leaves_nothing(how: signal.Signals, plugin: Path, tmp_path: Path) -> None:
    """It waits for an index that never answers, its children with it."""
    with socket.socket() as index:
        index.bind(("127.0.0.1", 0))
        index.listen()
        url = f"http://127.0.0.1:{index.getsockname()[1]}/simple"
        environment = toy_engine.environment(plugin, tmp_path, PIP_INDEX_URL=url, PIP_FIND_LINKS="")
        del environment["PIP_NO_INDEX"]
        command = [*PROGRAM, "env", "install", "toy", "--installer", "pip"]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        index.settimeout(60)
        connection, _ = index.accept()  # pip asks
        made = folders(tmp_path)
        assert len(made) == 1
        assert not (made[0] / MARKER).exists()
        process.send_signal(how)
        process.wait(30)
        connection.settimeout(30)
        while connection.recv(4096):  # pip is gone too
            pass
        connection.close()
    if how == signal.SIGTERM:
        assert folders(tmp_path) == []
        return
    listed = run(plugin, tmp_path, "env", "list", "--json")
    row = next(each for each in json.loads(listed.stdout.splitlines()[-1]) if each["engine"] == "toy")
    assert row["installed"] is False
    again = run(plugin, tmp_path, "env", "install", "toy", "--installer", "pip")
    assert again.returncode == 0, again.stderr
    assert (folders(tmp_path)[0] / MARKER).exists()


def test_what_was_borrowed_and_is_gone_is_no_environment(plugin: Path, tmp_path: Path) -> None:
    """As where this program's own environment, whose torch it links, was removed and made again elsewhere."""
    assert run(plugin, tmp_path, "env", "install", "toy", "--installer", "pip").returncode == 0
    (folder,) = folders(tmp_path)
    with open(next(folder.rglob("RECORD")), "a") as record:
        record.write("__pycache__/made_again.cpython-311.pyc,sha256=AAAA,4\n")
    assert run(plugin, tmp_path, "env", "verify", "toy").returncode == 0
    (folder / BORROWED).mkdir(exist_ok=True)
    (folder / BORROWED / "torch").symlink_to(tmp_path / "gone")
    lost = run(plugin, tmp_path, "env", "verify", "toy")
    assert lost.returncode == 2
    assert "quantwright env install toy" in lost.stderr
    assert run(plugin, tmp_path, "env", "install", "toy", "--installer", "pip").returncode == 0
    assert run(plugin, tmp_path, "env", "verify", "toy").returncode == 0


def test_verify_and_remove(plugin: Path, tmp_path: Path) -> None:
    assert run(plugin, tmp_path, "env", "install", "toy", "--installer", "pip").returncode == 0
    assert run(plugin, tmp_path, "env", "verify", "toy").returncode == 0
    next(folders(tmp_path)[0].rglob("toyround.py")).write_text("def nearest(value): return 0\n")
    damaged = run(plugin, tmp_path, "env", "verify", "toy")
    assert damaged.returncode == 1
    assert "toyround.py is not what was installed" in damaged.stderr
    assert run(plugin, tmp_path, "env", "remove", "toy").returncode == 0
    assert os.listdir(tmp_path / "environments") == []
    gone = run(plugin, tmp_path, "env", "verify", "toy")
    assert gone.returncode == 2
    assert "quantwright env install toy" in gone.stderr


@pytest.mark.parametrize(("answer", "code"), [("n", 2), ("y", 1)])
def test_a_person_is_asked(
    answer: str, code: int, plugin: Path, tmp_path: Path, demo_checkpoint: Path
) -> None:
    """Who says yes gets an attempt, which here finds no package: exit code 1, and no artifact was begun."""
    master, slave = pty.openpty()
    arguments = ["convert", str(demo_checkpoint), "--to", "toy-int4", "-o", str(tmp_path / "out")]
    environment = toy_engine.environment(plugin, tmp_path, PIP_FIND_LINKS="")
    with subprocess.Popen([*PROGRAM, *arguments], env=environment, stdin=slave, stderr=slave) as process:
        os.close(slave)
        said = b""
        while b"packages in the user's cache? [Y/n]" not in said:
            said += os.read(master, 1024)
        os.write(master, f"{answer}\n".encode())
        with contextlib.suppress(OSError):  # what Linux raises where the other side is closed
            while more := os.read(master, 1024):
                said += more
    os.close(master)
    assert process.returncode == code
    assert (
        b"No matching distribution" if answer == "y" else b"install with: quantwright env install"
    ) in said
    assert not (tmp_path / "out").exists()


def test_an_engine_dies_with_who_called_it(toy: Environment, tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)\n", encoding="utf-8"
    )
    caller = (
        "import sys\nfrom dataclasses import replace\nfrom pathlib import Path\nimport toy_plugin\n"
        "from quantize.engines.isolated.call import call\n"
        "from quantize.engines.isolated.environment import installed\n"
        "from quantize.recipe import RunOptions\n"
        "found = installed(toy_plugin.TOY)\nfolder = Path(sys.argv[1])\n"
        "broken = replace(found, engine=replace(found.engine, worker=folder / 'worker.py'))\n"
        "call(broken, folder, {}, RunOptions(threads=1))\n"
    )
    environment = toy_engine.environment(toy.engine.lock.parent, toy.folder.parent.parent)
    process = subprocess.Popen([sys.executable, "-c", caller, str(tmp_path)], env=environment)
    told = tmp_path / "pid"
    for _ in range(600):
        if told.is_file() and told.read_text():
            break
        time.sleep(0.1)
    engine = psutil.Process(int(told.read_text()))
    process.kill()
    process.wait()
    engine.wait(30)
