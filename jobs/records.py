"""What the runner writes down about each step, and the lock that keeps two runners apart."""

import fcntl
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from quantize.errors import BadInput
from quantize.files import read_json
from quantize.into_place import write_json

LOCK = ".lock"


@dataclass
class Record:
    """RUN/steps/<slug>.json. ``previous``: what lay at the output's place when the step began, so that
    something else there afterwards is known to be of this step even if the runner died before it could say
    so."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    id: str
    key: str
    status: str = "running"  # running, done, failed
    output: str = ""
    digest: str = ""
    previous: list[int] | None = None
    reason: str = ""
    exit_code: int | None = None
    attempts: int = 0
    wall_s: float = 0.0
    peak_rss_bytes: int = 0
    started_at: str = ""
    log: str = ""
    pid: int = 0
    node: str = ""  # name of the machine
    size_bytes: int | None = None  # of an artifact
    # what the plan said: size_bytes, memory_bytes, low_s, high_s
    planned: dict[str, Any] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)


_RECORD = TypeAdapter(Record)


class Records:
    def __init__(self, run: Path):
        self.folder = run / "steps"

    def read(self, slug: str) -> Record | None:
        """None where there is none, or a crash of the machine left half of one: the step is then not done."""
        try:
            return _RECORD.validate_python(read_json(self.folder / f"{slug}.json"))
        except (BadInput, ValidationError):
            return None

    def write(self, slug: str, record: Record) -> None:
        write_json(self.folder / f"{slug}.json", asdict(record))

    def all(self) -> list[Record]:
        found = [self.read(path.stem) for path in sorted(self.folder.glob("*.json"))]
        return [record for record in found if record]


def identity(path: Path) -> list[int] | None:
    """Tells whether something else lies at ``path`` than before: a committed output is always a new file or
    folder."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_ino, status.st_ctime_ns]


class RunLock:
    """flock on RUN/.lock, inherited by the steps: as long as one of a dead runner is still on its way out, it
    is held."""

    def __init__(self, run: Path, patience_s: float = 5.0):
        self.run = run
        try:
            run.mkdir(parents=True, exist_ok=True)
            self.file = open(run / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - held for the life of the runner
        except OSError as error:
            raise BadInput(f"{run}: cannot be written ({error.strerror}); choose another -o") from None
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                holder = self._holder()
                # A living holder is another runner; a dead one's last step is about to be gone.
                if holder is None or _alive(holder) or time.monotonic() > deadline:
                    self.file.close()
                    who = f"process {holder}" if holder else "another process"
                    raise BadInput(
                        f"{run}: {who} is running a job here; wait for it, or choose another -o"
                    ) from None
                time.sleep(0.05)
        self.file.seek(0)
        self.file.truncate()
        self.file.write(f"{os.getpid()}\n")
        self.file.flush()

    @property
    def fd(self) -> int:
        return self.file.fileno()

    def _holder(self) -> int | None:
        try:
            return int((self.run / LOCK).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
