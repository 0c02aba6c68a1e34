"""What ends a command from outside: it clears up, its children end with it, and the exit code is the one a
shell shows."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

#: The command with a step of its own that waits in the middle of its work.
COMMAND = """
import sys, time
from pathlib import Path
import click
from quantize import cli
from quantize.staging import staging

@click.command()
@click.argument("out", type=Path)
def wait(out):
    with staging(out) as stage:
        (stage / "half").write_text("")
        print("ready", flush=True)
        time.sleep(60)

cli.cli.get_command = lambda context, name: wait
cli.main()
"""


def deaf_to_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def begin(tmp_path: Path, prepare: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND, "run", str(tmp_path / "made" / "out")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepare
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_ends_the_command_and_leaves_nothing(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    process = begin(tmp_path)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_what_was_started_under_nohup_goes_on(tmp_path: Path) -> None:
    process = begin(tmp_path, deaf_to_hangup)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.terminate()
    assert process.wait(30) == 143


def test_a_reader_that_is_gone_is_no_fault(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quantize.cli", "methods"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()  # type: ignore[union-attr]
    said = process.stderr.read()  # type: ignore[union-attr]
    assert process.wait(60) in (1, 141)
    assert said == b""


CHILD = """
import os, sys, time
from quantize.process import run_child
if sys.argv[1:] == ["child"]:
    from quantize.cli import end_on_signals
    end_on_signals()
    try:
        print(os.getpid(), flush=True, file=sys.stderr)  # inside: what follows it is cleared up
        time.sleep(60)
    finally: print("cleared", flush=True, file=sys.stderr)
else:
    from quantize.cli import end_on_signals
    end_on_signals()
    run_child("child_module", "child")
"""


@pytest.mark.parametrize(("number", "clears"), [(signal.SIGTERM, True), (signal.SIGKILL, False)])
def test_a_child_ends_with_its_parent(number: signal.Signals, clears: bool, tmp_path: Path) -> None:
    (tmp_path / "child_module.py").write_text(CHILD)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, str(tmp_path / "child_module.py")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    child = psutil.Process(int(process.stderr.readline()))
    process.send_signal(number)
    said = process.stderr.read()
    assert process.wait(30) in (143, -signal.SIGKILL)
    assert ("cleared" in said) == clears
    deadline = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
