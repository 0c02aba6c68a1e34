"""Locks that a killed build leaves behind, and variables that an engine's dependency would move."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantize.kernels import ensure_kernel_environment, stale_locks


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


@pytest.mark.long  # imports both libraries; compiles for minutes where set-up did not
def test_kernels_that_set_up_builds_are_ready() -> None:
    from quantize.kernels import build_kernels

    results = dict(build_kernels())
    assert all(state == "ready" for state in results.values()), results


def test_the_hubs_caches_stay_where_they_are() -> None:
    pytest.importorskip("tokenicer")
    code = (
        "import os; from quantize.kernels import keep_hub_caches; keep_hub_caches(); import tokenicer; print(sorted(os.environ))"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean, check=True).stdout
    assert not [name for name in ("HF_HOME", "HF_HUB_CACHE", "TRANSFORMERS_CACHE") if name in printed]
