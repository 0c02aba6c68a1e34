"""Output is whole or not there, and what was there before is not lost: by links, force, two writers,
kills."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from quantize.artifact.artifact import claim_output
from quantize.disk_errors import disk_error
from quantize.errors import BadInput, StepFailed
from quantize.into_place import put_in_place, whole_file
from quantize.staging import claim_run, held_folder, staging, sweep_output, temporary_folder


def artifact(folder: Path, *more: str) -> Path:
    """A folder that a manifest of ours vouches for."""
    folder.mkdir(parents=True)
    for name in ("weights.bin", *more):
        (folder / name).write_text(folder.name)
    (folder / "manifest.json").write_text('{"recipe_digest": "12", "damaged": ')
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- what force may replace


def test_force_replaces_an_artifact_or_an_empty_folder_and_nothing_else(tmp_path: Path) -> None:
    ours, empty = artifact(tmp_path / "ours"), tmp_path / "empty"
    empty.mkdir()
    for out in (ours, empty):
        assert claim_output(out, force=True) == out
        with pytest.raises(BadInput, match=r"already exists.*--force"):
            claim_output(out, force=False)
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    (photographs / "beach.jpg").write_text("x")
    with pytest.raises(BadInput, match=r"holds beach.jpg and no manifest.json"):
        claim_output(photographs, force=True)
    (photographs / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(BadInput, match="another program's manifest"):
        claim_output(photographs, force=True)
    with pytest.raises(BadInput, match="holds results beside the artifact"):
        claim_output(artifact_with_manifest(tmp_path / "measured", "results"), force=True)
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(BadInput, match="is a file"):
        claim_output(tmp_path / "thesis.txt", force=True)


def artifact_with_manifest(folder: Path, beside: str) -> Path:
    from quantize.artifact.artifact import Manifest, Source, Verification, commit, hash_files

    with staging(folder) as stage:
        (stage / "weights.bin").write_text("x")
        source = Source(
            id="m", revision=None, digest="12", dtype="BF16", architecture="A", model_type="a", parameters=1
        )
        manifest = Manifest(
            recipe={"method": "dense"}, recipe_short="float32", recipe_digest="12", source=source, tool={},
            engine="",
            libraries={},
            files=hash_files(stage), weight_bytes=1, bits_per_weight=8, runtime="", loads_in=(),
            verification=Verification(level="none"),
        )  # fmt: skip
        commit(stage, folder, manifest, force=False)
    claim_output(folder, force=True)
    (folder / beside).mkdir()
    return folder


def test_force_never_replaces_what_is_read(tmp_path: Path) -> None:
    out = artifact(tmp_path / "models", "adapter.safetensors")
    source = out / "source"
    source.mkdir()
    (tmp_path / "link").symlink_to(source)
    for given in (out, source, out / "adapter.safetensors", tmp_path / "link"):
        with pytest.raises(BadInput, match=r"(is|holds) .*, an input that would be lost"):
            claim_output(out, True, [given])
    made = artifact(tmp_path / "source" / "q8")
    # within its source's folder
    assert claim_output(made, True, [tmp_path / "source", tmp_path / "absent"]) == made


def test_a_link_is_followed_and_one_to_nothing_refused(tmp_path: Path) -> None:
    real = tmp_path / "disk" / "real"
    artifact(real)
    link = tmp_path / "link"
    link.symlink_to(real)
    out = claim_output(link, force=True)
    with staging(out) as stage:
        (stage / "new").write_text("new")
        put_in_place(stage, out, replace=True)
    assert link.is_symlink()
    assert names(link) == ["new"]
    assert names(tmp_path / "disk") == ["real"]
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for check in (lambda path: claim_output(path, True), lambda path: claim_output(path, False), claim_run):
        with pytest.raises(BadInput, match=r"is a link to .*nothing, which does not exist"):
            check(tmp_path / "dangling")


def test_a_run_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(BadInput, match=r"is a file|cannot be written"):
            claim_run(path)
    claim_run(tmp_path / "new" / "run")


# -- one step


@pytest.fixture(params=["one step", "two steps"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As on a file system that can exchange two names, and on one that cannot."""
    if request.param == "two steps":
        # a C library that does not know the call
        monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    return str(request.param)


def test_what_was_there_is_replaced(steps: str, tmp_path: Path) -> None:
    out = artifact(tmp_path / "out")
    with staging(out) as stage:
        (stage / "new").write_text("new")
        put_in_place(stage, out, replace=True)
    assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]


def test_the_second_of_two_writers_loses_nothing_of_the_first(steps: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staging(out) as first, staging(out) as second:
        assert first != second
        (first / "a").write_text("first")
        (second / "a").write_text("second")
        put_in_place(first, out, replace=False)
        with pytest.raises(
            BadInput, match=r"already exists: another process has written it in the meantime"
        ) as caught:
            put_in_place(second, out, replace=False)
        assert "\n" not in str(caught.value)
    assert (out / "a").read_text() == "first"
    assert names(tmp_path) == ["out"]


def test_many_writers_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    out, ended = tmp_path / "out", []

    def write(number: int) -> None:
        try:
            with staging(out) as stage:
                for name in "abc":
                    (stage / name).write_text(str(number))
                put_in_place(stage, out, replace=number % 2 == 0)
                ended.append("done")
        except BadInput:
            ended.append("refused")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) == 8
    assert len({(out / name).read_text() for name in "abc"}) == 1
    assert names(tmp_path) == ["out"]


def test_the_users_umask_holds(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with staging(tmp_path / "out") as stage:
            (stage / "a").write_text("a")
            put_in_place(stage, tmp_path / "out", replace=False)
        with whole_file(tmp_path / "file") as part:
            part.write_text("a")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


# -- what dead processes leave

WRITER = """
import ctypes, os, signal, sys
from pathlib import Path
from quantize import into_place, staging
out, where = Path(sys.argv[1]), sys.argv[2]
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if where == "between": ctypes.CDLL = lambda *_, **__: object()
with staging.staging(out) as stage:
    (stage / "new").write_text("new")
    if where == "before": die()
    if where == "between":
        rename = os.rename
        os.rename = lambda a, b: (rename(a, b), die())
    if where == "after": staging.remove = die
    into_place.put_in_place(stage, out, replace=True)
"""


@pytest.mark.parametrize(("where", "content"), [("before", "old"), ("between", "old"), ("after", "new")])
def test_a_kill_at_any_moment_loses_nothing_and_the_next_run_clears_up(
    where: str, content: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    done = subprocess.run([sys.executable, "-c", WRITER, str(out), where], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(names(tmp_path)) > (0 if where == "between" else 1)
    sweep_output(out)
    assert names(out) == [content]
    assert names(tmp_path) == ["out"]


def test_only_what_nobody_works_on_is_cleared(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staging(out) as stage:
        code = (
            "import sys; from pathlib import Path; from quantize.staging import sweep_output; "
            "sweep_output(Path(sys.argv[1]))"
        )
        subprocess.run([sys.executable, "-c", code, str(out)], check=True)
        sweep_output(out)
        assert stage.is_dir()
        (tmp_path / ".out.staging-notes").mkdir()  # somebody else's, without a lock
        (tmp_path / ".out.staging-0123456789ab").mkdir()
    sweep_output(out)
    assert names(tmp_path) == [".out.staging-0123456789ab", ".out.staging-notes"]


HOLDER = """
import os, signal, sys
from pathlib import Path
from quantize.staging import held_until_exit, temporary_folder
place = Path(sys.argv[1])
(held_until_exit("gguf", place) / "config.json").write_text("{}")
with temporary_folder("weights", place) as folder:
    (folder / "model.safetensors").write_text("x")
    if sys.argv[2] == "die": os.kill(os.getpid(), signal.SIGKILL)
"""


def test_temporary_folders_of_a_killed_process_are_swept_by_the_next(tmp_path: Path) -> None:
    """Named with their process; whatever they were for, and never those of a process that lives."""
    done = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path), "die"])
    assert done.wait() == -signal.SIGKILL
    left = [name.rpartition("-")[0] for name in names(tmp_path) if not name.endswith(".lock")]
    assert left == [f"quantwright-gguf-{done.pid}", f"quantwright-weights-{done.pid}"]
    with temporary_folder("floor", tmp_path) as mine:
        (tmp_path / "quantwright-notes-0123456789ab").mkdir()  # somebody else's, without a lock
        assert names(tmp_path) == sorted([mine.name, f"{mine.name}.lock", "quantwright-notes-0123456789ab"])
        subprocess.run([sys.executable, "-c", HOLDER, str(tmp_path), "live"], check=True)
        assert mine.is_dir()
    assert names(tmp_path) == ["quantwright-notes-0123456789ab"]


def test_locks_that_are_links_are_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    place = tmp_path / "place"
    place.mkdir()
    (place / ".x-0123456789ab").symlink_to(precious)
    (place / ".x-0123456789ab.lock").write_text("")
    (place / ".x-aaaaaaaaaaaa.lock").symlink_to(precious / "file")
    (place / ".x-aaaaaaaaaaaa").mkdir()
    with held_folder(place, ".x-"):
        pass
    assert names(precious) == ["file"]
    assert ".x-aaaaaaaaaaaa" in names(place)


def test_parts_of_files_that_dead_processes_left_go(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    code = (
        "import os, signal, sys; from pathlib import Path; from quantize.into_place import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as part: part.write_text('half'); os.kill(os.getpid(), "
        "signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert len(names(tmp_path)) == 1
    with whole_file(path) as mine, whole_file(path) as other:
        mine.write_text("mine")
        other.write_text("other")
        assert len(names(tmp_path)) == 2
    assert path.read_text() == "mine"
    assert names(tmp_path) == ["file.json"]
    with pytest.raises(BadInput, match="already exists"), whole_file(path, replace=False) as part:
        part.write_text("second")
    assert path.read_text() == "mine"


# -- full disks


def _tofile() -> None:
    import numpy as np

    with open("/dev/full", "wb") as file:
        np.zeros(100_000).tofile(file)


def _text() -> None:
    with open("/dev/full", "w") as file:
        file.write("x" * 100_000)


def _wrapped() -> None:
    try:
        _text()
    except OSError as error:
        raise RuntimeError("the library failed") from error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("write", [_tofile, _text, _wrapped])
def test_a_full_disk_is_known_in_every_librarys_words(write: Callable[[], None], tmp_path: Path) -> None:
    with (
        pytest.raises(StepFailed, match=r"out: the disk is full; free some space"),
        staging(tmp_path / "a" / "out"),
    ):
        write()
    assert names(tmp_path) == []


def test_a_full_disk_in_safetensors_words(tmp_path: Path) -> None:
    """Whose error is no OSError: on a file system of 64 kB, in a mount namespace of the test's own."""
    code = (
        "import sys; from pathlib import Path; import numpy as np; from safetensors.numpy import save_file\n"
        "from quantize.disk_errors import disk_is_full\n"
        "try: save_file({'a': np.zeros(100_000)}, sys.argv[1])\n"
        "except Exception as error: print(isinstance(error, OSError), disk_is_full(error))"
    )
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=64k none {disk} && exec "$@"'
    namespace = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*namespace, "true"], capture_output=True).returncode
    ):
        pytest.skip("no mount namespaces here")
    done = subprocess.run(
        [*namespace, sys.executable, "-c", code, str(disk / "f")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (ValueError("x"), OSError("no number"), BadInput("No space left on device")):
        assert disk_error(error, tmp_path) is error
    assert "Read-only" in str(disk_error(OSError(errno.EROFS, "Read-only file system"), tmp_path))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_file_that_finds_the_disk_full_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("old")
    with (
        pytest.raises(StepFailed, match=r"results.json: the disk is full"),
        whole_file(tmp_path / "results.json"),
    ):
        _text()
    assert (tmp_path / "results.json").read_text() == "old"
    assert names(tmp_path) == ["results.json"]
