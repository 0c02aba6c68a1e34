"""Folders of a node in which steps work that do not see the run folder; those of workers that were killed are
cleared away."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Container, Iterator
from pathlib import Path

from quantize.errors import StepFailed
from quantize.hashes import sha256_files
from quantize.staging import held_folder

LOG = "log"


def work_root() -> Path:
    """``$TMPDIR/quantwright-<uid>``, for this user alone. Errors: StepFailed where it belongs to another
    user."""
    root = Path(tempfile.gettempdir()) / f"quantwright-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        root.mkdir(mode=0o700)
    found = root.lstat()  # a link that somebody planted there is theirs, wherever it leads
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise StepFailed(f"{root} belongs to another user; set TMPDIR where Ray is started")
    return root


@contextlib.contextmanager
def work_folder(stage: str) -> Iterator[Path]:
    """A folder like a fresh run folder: with a ``cache``, and the step's own folder ``stage``. It is gone
    afterwards."""
    with held_folder(work_root(), "step-") as work:
        (work / "cache").mkdir()
        (work / stage).mkdir(parents=True)
        (work / stage / "cache").symlink_to(work / "cache")
        yield work


def new_files(work: Path, known: Container[str]) -> dict[str, str]:
    """What a step has left there besides what it was given: name -> sha256."""
    found = [
        path
        for path in sorted(work.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name != "stdout"
    ]
    names = {path: str(path.relative_to(work)) for path in found}
    return {
        names[path]: digest
        for path, digest in sha256_files(
            path for path in found if names[path] != LOG and names[path] not in known
        ).items()
    }
