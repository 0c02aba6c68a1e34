"""Locks that a killed build leaves behind, and who waits for one."""

import fcntl
import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jobs.work_folder import work_root
from quantize.errors import StepFailed
from quantize.hf.extensions import ensure_kernel_environment, stale_locks


def make_lock(folder: Path, age_s: float) -> Path:
    folder.mkdir(parents=True)
    for name in ("build.ninja", "lock"):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age_s,) * 2)
    return folder / "lock"


def test_an_abandoned_lock_goes_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = make_lock(tmp_path / "py311_cpu" / "quanto_cpp", age_s=3600)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    ensure_kernel_environment()
    assert not lock.exists()
    assert (lock.parent / "build.ninja").exists()


def test_a_lock_just_made_stays(tmp_path: Path) -> None:
    make_lock(tmp_path / "x", age_s=0)
    assert stale_locks([tmp_path]) == []


def test_a_lock_of_a_build_that_runs_stays(tmp_path: Path) -> None:
    lock = make_lock(tmp_path / "x", age_s=3600)
    builder = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd=lock.parent)
    try:
        assert stale_locks([tmp_path]) == []
    finally:
        builder.kill()
        builder.wait()
    assert stale_locks([tmp_path]) == [lock]


def test_the_interpreters_own_programs_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    ensure_kernel_environment()
    assert os.environ["PATH"].split(os.pathsep)[0] == os.path.dirname(sys.executable)


def test_the_lock_follows_no_link_and_says_when_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said = io.StringIO()  # which, unlike capsys, loses nothing that is written while it is read
    monkeypatch.setattr(sys, "stderr", said)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "quantwright").mkdir()
    lock = tmp_path / "quantwright" / "kernels.lock"
    lock.symlink_to(victim)
    ensure_kernel_environment()
    assert victim.read_text() == "precious"
    lock.unlink()
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = threading.Thread(target=ensure_kernel_environment)
        waiting.start()
        while "waiting for another process" not in said.getvalue():
            assert waiting.is_alive()
            time.sleep(0.01)
    waiting.join(30)
    assert not waiting.is_alive()


def test_a_work_folder_that_somebody_else_planted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"quantwright-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StepFailed, match="belongs to another user"):
        work_root()


def test_a_lock_that_a_process_holds_open_stays(tmp_path: Path) -> None:
    """As torch does from before the compiler starts until after it has ended, however long a loaded machine
    takes between."""
    lock = make_lock(tmp_path / "quanto_cpp", age_s=3600)
    code = f"import sys, time; file = open({str(lock)!r}); print('open', flush=True); time.sleep(60)"
    builder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "open\n"
        assert stale_locks([tmp_path]) == []
    finally:
        builder.kill()
        builder.wait()
    assert stale_locks([tmp_path]) == [lock]
